"""Places that somebody named to be written to, tried before anything is done for them: hours later is too late."""

from __future__ import annotations

import tempfile
from pathlib import Path


class Unusable(Exception):
    """Nothing can be written there; the message names the flag, the place and the reason."""


def make(path: Path, flag: str, *, mode: int = 0o777) -> None:
    """A folder, made where it is not there yet. Raises Unusable."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise Unusable(f"{flag} {path}: that is a file, and it has to be a folder") from error
    except OSError as error:
        raise Unusable(f"{flag} {path}: it cannot be made: {error.strerror}") from error
    _try(path, f"{flag} {path}")


def takes(file: Path, flag: str) -> None:
    """A file can be written there. Raises Unusable."""
    if file.is_dir():
        raise Unusable(f"{flag} {file}: that is a folder, and it has to be a file")
    _try(file.absolute().parent, f"{flag} {file}")


def _try(folder: Path, named: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Unusable(f"{named}: nothing can be written there: {error.strerror}") from error

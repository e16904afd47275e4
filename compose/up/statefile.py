"""Which systems of this user run here, for the other commands: a file for each `okome up`, in one folder.

A system that ended takes its file with it. One that was killed cannot, so a file counts only while somebody lives in
the directory that it names.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from compose.up import lock, readyfile


def folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else _home() / ".local" / "state") / "okome" / "systems"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user whom this machine does not know, as containers have them
        return Path("/")


def new() -> Path:
    """The place of a system that starts now; names sort by age."""
    return folder() / f"{time.time_ns():020}-{secrets.token_hex(2)}.json"


def write(path: Path, document: dict[str, Any]) -> None:
    """Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    readyfile.write(path, readyfile.dump(document))


def running() -> list[dict[str, Any]]:
    """The ready files of the systems that run, the one started last first."""
    return [document for path in _files() if (document := _read(path)) is not None and _lives(document)]


def sweep() -> None:
    """Remove the files of systems that were killed. Raises OSError."""
    for path in _files():
        document = _read(path)
        if document is not None and not _lives(document):
            path.unlink(missing_ok=True)


def forget(data: Path) -> None:
    """Remove what a system that was killed left of itself in this directory, for whoever has taken it over: else that
    would count again. Raises OSError."""
    for path in _files():
        document = _read(path)
        if document is not None and document["data"] == str(data):
            path.unlink(missing_ok=True)


def _files() -> list[Path]:
    try:
        return sorted(folder().glob("*.json"), reverse=True)
    except OSError:  # not ours to read: nothing of ours is in it
        return []


def _read(path: Path) -> dict[str, Any] | None:
    """None for one that is gone meanwhile, or that nobody can read."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and isinstance(document.get("data"), str) else None


def _lives(document: dict[str, Any]) -> bool:
    return lock.held(Path(document["data"]))

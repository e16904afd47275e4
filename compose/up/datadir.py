"""The directory a system lives in: its lock, its API key, and the places of everybody's state.

Starting again on the same directory resumes everything. A directory that nobody named is temporary and goes at the end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from broker.bus.credentials import new_api_key
from compose import folder
from compose.up import lock, readyfile

PREFIX = "okome-"
TEMPORARY = "temporary"
"""A file in a directory that nobody named: it may be removed with all that it holds."""
SERVERS = "nats-servers"
"""A file that says how many NATS servers have laid the logs here."""


class DirectoryBusy(Exception):
    """Another `okome up` lives there."""

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(f"{path} is in use by another `okome up`{f' (process {pid})' if pid else ''}")
        self.path = path


class KeyInvalid(Exception):
    """The API key that was given cannot be one."""


class DataDir:
    """An owned directory; opened by its constructor, released by `close`. Raises Unusable, DirectoryBusy or OSError."""

    def __init__(self, named: Path | None) -> None:
        self.temporary = named is None
        if named is None:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        else:
            folder.make(named, "--data", mode=0o700)
            self.path = named.resolve()
        self._lock: TextIO | None = self._take_lock()
        if self.temporary:
            (self.path / TEMPORARY).touch()
        else:
            (self.path / TEMPORARY).unlink(missing_ok=True)  # whoever names one that was left means to keep it
        self.logs = self._place("logs")

    def __enter__(self) -> DataDir:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent. The lock goes last, so nobody starts in a directory that is being removed."""
        if self._lock is None:
            return
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()
        self._lock = None

    def place(self, name: str) -> Path:
        """A directory of a part's own."""
        return self._place(name)

    def nats_servers(self, asked: int) -> int:
        """How many NATS servers have laid the logs here; as many as are asked for, from now on, where there are none.

        What stands in a cluster's logs is nothing that a single server has, and the other way round.
        """
        used = [place for place in self.path.glob("nats-[0-9]*") if any(place.iterdir())]
        if used:
            with suppress(FileNotFoundError, ValueError):
                return int((self.path / SERVERS).read_text())
        count = (3 if len(used) > 1 else 1) if used else asked  # one that is older than the file has no other counts
        readyfile.write(self.path / SERVERS, f"{count}\n")
        return count

    @property
    def tls(self) -> Path:
        return self._place("tls")

    @property
    def key_file(self) -> Path:
        return self.path / "api-key"

    def api_key(self, given: str = "") -> tuple[str, bool]:
        """The API key, and whether it was made just now. Raises KeyInvalid.

        One that is given is used and not kept; without one, the directory's own is used, made when there is none.
        """
        if given:
            return checked_key(given, "the API key"), False
        try:
            return checked_key(self.key_file.read_text(), str(self.key_file)), False
        except FileNotFoundError:
            made = new_api_key()
            readyfile.write(self.key_file, made + "\n")
            return made, True

    def _take_lock(self) -> TextIO:
        try:
            return lock.take(self.path)
        except lock.Taken as error:
            raise DirectoryBusy(self.path, error.pid) from None

    def _place(self, name: str) -> Path:
        place = self.path / name
        place.mkdir(mode=0o700, exist_ok=True)
        return place


def sweep() -> list[Path]:
    """Remove the temporary directories of this user's systems that were killed; returns them."""
    gone = []
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            mine = path.lstat().st_uid == os.geteuid()  # first: nobody may look into another user's
            if not mine or path.is_symlink() or not (path / TEMPORARY).is_file():
                continue
        except OSError:  # gone meanwhile
            continue
        left = lock.abandoned(path)
        if left is None:
            continue
        with left:
            shutil.rmtree(path, ignore_errors=True)
        gone.append(path)
    return gone


def checked_key(text: str, where: str) -> str:
    """A key without its line end. Raises KeyInvalid: too short to be a secret, or not printable ASCII."""
    key = text.strip()
    if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
        raise KeyInvalid(f"{where} is not an API key: at least 16 printable characters without spaces")
    return key

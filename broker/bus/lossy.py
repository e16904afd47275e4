"""A text file of which nobody is told that it takes nothing: what is written then is lost, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from io import TextIOBase
from typing import TextIO

_GONE = (OSError, ValueError)  # the second: closed


class Lossy(TextIOBase):
    """For what a role logs, which may be on the disk that is full, and for a terminal that may be gone. Who writes
    there is often a safety net.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read only here
        return self._file.encoding

    def write(self, text: str) -> int:
        with suppress(*_GONE):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(*_GONE):
            self._file.flush()

    def isatty(self) -> bool:
        return self._file.isatty()

    def fileno(self) -> int:
        return self._file.fileno()

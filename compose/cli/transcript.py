"""A session's events as text on a terminal or in a pipe. Tokens go out as they come, the rest is one line each."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from compose.cli.api import Event

DIM, BOLD, RED, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[0m"


class Transcript:
    """Writes events to `out`. `roles` shows who speaks; notes and colours are for terminals only."""

    def __init__(self, out: TextIO | None = None, *, roles: bool = True) -> None:
        self._out = out or sys.stdout
        self._roles = roles
        self._terminal = self._out.isatty()
        self._colour = self._terminal and "NO_COLOR" not in os.environ
        self._line_open = False

    def show(self, event: Event) -> None:
        data = event.data
        match event.name:
            case "message":
                self._role(str(data.get("role", "")))
                self._text(str(data.get("content", "")))
                self._end_line()
            case "start":
                if self._roles:
                    for message in data.get("input", []):
                        self._role(str(message.get("role", "")))
                        self._text(str(message.get("content", "")))
                        self._end_line()
                    self._role("assistant")
            case "token":
                self._text(str(data.get("text", "")))
            case "done":
                self._end_line()
                if data.get("finish_reason") not in (None, "stop"):
                    self.note(f"ended: {data['finish_reason']}")
            case "failed" | "cancelled" | "expired":
                self._end_line()
                why = str(data.get("message") or data.get("code") or "")
                self.note(f"{event.name}{': ' if why else ''}{why}", RED)
            case "attempt":
                if self._terminal:
                    self._end_line()
                    self.note(f"another worker goes on here: {data.get('worker')}, epoch {data.get('epoch')}")
            case "reset":
                self._end_line()
                self.note(f"what is older than {data.get('earliest')} is gone: {data.get('reason')}", RED)
            case "queued":
                if self._terminal:
                    self.note(f"waiting, {data.get('position')} before it")
            case _:
                return
        self._out.flush()

    def end(self) -> None:
        """Leave the cursor at the beginning of a line."""
        self._end_line()
        self._out.flush()

    def _text(self, text: str) -> None:
        if text:
            self._out.write(text if not self._terminal else printable(text))
            self._line_open = not text.endswith("\n")

    def _role(self, role: str) -> None:
        if self._roles:
            self._end_line()
            self._out.write(f"{BOLD}{role}:{PLAIN} " if self._colour else f"{role}: ")
            self._line_open = True

    def note(self, text: str, style: str = DIM) -> None:
        """A line about the conversation, not of it: in a pipe it goes to stderr."""
        where = self._out if self._terminal else sys.stderr
        where.write(f"{style}[{text}]{PLAIN}\n" if self._colour else f"[{text}]\n")

    def _end_line(self) -> None:
        if self._line_open:
            self._out.write("\n")
            self._line_open = False


def printable(text: str) -> str:
    """Without control characters: what a model writes must not be able to drive somebody's terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)

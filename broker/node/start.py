"""Where a viewer wants to begin, and where to end, as a request says it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from broker.bus.errors import CursorInvalid, Refusal
from broker.bus.subjects import Cursor, parse_cursor


class Start(NamedTuple):
    """Where a client wants to begin: `cursor`, or one of the words."""

    word: str  # "fresh" | "first" | "now" | "cursor"
    cursor: Cursor | None = None


def read_start(after: str | None, last_event_id: str | None) -> Start:
    """Where to begin: `Last-Event-ID` beats `?after=`. Raises Refusal `malformed`."""
    text, name = (last_event_id, "Last-Event-ID") if last_event_id else (after, "after")
    match text:
        case None | "":
            return Start("fresh")
        case "0":
            return Start("first")
        case "now":
            return Start("now")
    try:
        return Start("cursor", parse_cursor(text))
    except CursorInvalid as error:
        raise Refusal("malformed", str(error), param=name) from error


def read_until(until: str | None) -> bool:
    """Whether a stream ends with what runs now. Raises Refusal `malformed`."""
    if until not in (None, "", "done"):
        raise Refusal("malformed", "until is done, or left out", param="until")
    return until == "done"

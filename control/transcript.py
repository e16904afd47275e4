"""What a session's log says of one generation: where it stands, and what would end it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from broker.bus.conversation import fold
from broker.bus.frames import Frame
from broker.bus.records import Generation, Status, encode


class Place(NamedTuple):
    """Where a terminal frame of a begun generation goes."""

    epoch: int
    prev: int
    offset: int


def closed(record: Generation, frames: Iterable[Frame], now_ms: int) -> Generation | None:
    """The record with what the log says of its end, or None while the log does not say that it ended.

    `frames`: the session's behind `record.after`. Where the head aged out the text is lost and the end is not.
    """
    mine = [frame for frame in frames if frame.gid == record.id]
    if not mine or not mine[-1].terminal:
        return None
    end = mine[-1]
    data = end.fields()
    record = msgspec.structs.replace(
        record,
        status=Status(end.type),
        last_seq=end.seq,
        finish_reason=data.get("finish_reason", ""),
        code=data.get("code", ""),
        error=data.get("message", ""),
        completion_tokens=end.offset,
        ended_at=max(data.get("t", now_ms), record.created_at),  # its worker's clock may be behind
    )
    for turn in fold(mine):
        record = msgspec.structs.replace(
            record,
            first_seq=turn.first_seq,
            text=turn.text,
            prompt_tokens=turn.prompt_tokens,
            completion_tokens=turn.completion_tokens,
        )
    return record


def fitting(record: Generation, limit: int) -> Generation:
    """The record with as much of its text as `limit` bytes of it have room for; all of it, nearly always."""
    over = len(encode(record)) - limit
    if over <= 0:
        return record
    # Every byte of UTF-8 is one of JSON at least: of a text full of escapes a little more is cut than must be.
    text = record.text.encode()
    kept = text[: max(0, len(text) - over)].decode(errors="ignore")
    return msgspec.structs.replace(record, text=kept, truncated=True)


def end_of(last: Frame) -> Place:
    """Behind the last frame of a generation that somebody else began: in an epoch of its own."""
    return Place(last.epoch + 1, last.seq, last.offset + last.n)


def terminal_data(kind: str, code: str, message: str, now_ms: int) -> dict[str, Any]:
    """A terminal's data as api.md has it; `code` and `message` are not said of a cancelled one."""
    match kind:
        case Status.FAILED:
            return {"code": code, "message": message, "retryable": True, "t": now_ms}
        case Status.EXPIRED:
            return {"code": code, "message": message, "t": now_ms}
        case _:
            return {"t": now_ms}

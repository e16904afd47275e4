"""What happened before: finished turns in one piece, from the records OKOME keeps and, where those lack, from the log.

So a fresh viewer costs the same after a thousand turns as after ten: only what no record covers is read frame by frame.
"""

from __future__ import annotations

import msgspec

from broker.bus.conversation import Turn, fold
from broker.bus.errors import FrameMalformed
from broker.bus.frames import decode_frame
from broker.bus.kv import Bucket
from broker.bus.log import read_all
from broker.bus.nats import Bus
from broker.bus.records import Generation, Message
from broker.bus.records import decode as decode_record
from broker.bus.subjects import log_subject
from broker.node.events import Event, make
from broker.node.tail import Tail


class History:
    """Reads generations and finished turns. No state of its own."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._generations = Bucket(bus, "generations")

    async def generations(self, sid: str) -> list[Generation]:
        """The session's generations, oldest first."""
        found: list[Generation] = []
        for entry in (await self._generations.all(f"{sid}.*")).values():
            try:
                found.append(decode_record(entry.value, Generation))
            except msgspec.ValidationError:
                continue  # not a generation: the key that marks the running one
        return sorted(found, key=lambda generation: (generation.created_at, generation.id))

    async def pending(self, sid: str) -> bool:
        """Whether a generation was accepted and has not ended."""
        return any(generation.status.open for generation in await self.generations(sid))

    async def turns(self, sid: str, stream: str) -> list[Turn]:
        """Every turn, oldest first: recorded ones from their records, the others (the running one too) from the log."""
        recorded = [
            _turn(generation)
            for generation in await self.generations(sid)
            if not generation.status.open and generation.last_seq
        ]
        recorded.sort(key=lambda turn: turn.last_seq)
        after = recorded[-1].last_seq if recorded else 0
        stored = await read_all(self._bus, stream, log_subject(sid), after)
        try:
            fresh = fold(decode_frame(message.data, message.seq) for message in stored)
        except FrameMalformed:
            fresh = []
        return recorded + fresh

    async def finished(self, sid: str, tail: Tail) -> tuple[list[Event], int]:
        """One `message` event per finished input and answer, and the sequence behind them."""
        events: list[Event] = []
        after = 0
        for turn in await self.turns(sid, tail.stream):
            if not turn.finished:
                break
            events += messages(turn, tail.incarnation)
            after = turn.last_seq
        return events, after


def messages(turn: Turn, incarnation: str) -> list[Event]:
    """A finished turn as `message` events; an id is the cursor of the last frame an event covers."""
    events = [
        make(
            "message",
            {"generation_id": turn.gid, "role": message.role, "content": message.content},
            f"{incarnation}-{turn.first_seq}",
        )
        for message in turn.input
    ]
    answer = {
        "generation_id": turn.gid,
        "role": "assistant",
        "content": turn.text,
        "finish_reason": turn.finish_reason or turn.status,
        "usage": {"prompt_tokens": turn.prompt_tokens, "completion_tokens": turn.completion_tokens},
    }
    return [*events, make("message", answer, f"{incarnation}-{turn.last_seq}")]


def _turn(generation: Generation) -> Turn:
    request = generation.request
    input: list[Message] = request.messages[-1:] if request.whole_context else request.messages
    return Turn(
        generation.id,
        request.model,
        input,
        generation.first_seq,
        generation.last_seq,
        parts=[generation.text] if generation.text else [],
        tokens=generation.completion_tokens,
        status=str(generation.status),
        finish_reason=generation.finish_reason,
        code=generation.code,
        error=generation.error,
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.completion_tokens,
    )

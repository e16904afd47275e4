"""What happened before: finished turns in one piece, from the records OKOME keeps and, where those lack, from the log.

So a fresh viewer costs the same after a thousand turns as after ten: only what no record covers is read frame by frame.
"""

from __future__ import annotations

from itertools import pairwise, takewhile
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from broker.bus.conversation import Turn, fold, new_input, of_record
from broker.bus.errors import FrameMalformed
from broker.bus.frames import Frame, decode_frame
from broker.bus.jobs import count_model_jobs
from broker.bus.kv import Bucket
from broker.bus.log import get, last, read_all
from broker.bus.nats import Bus
from broker.bus.records import Generation, Session
from broker.bus.records import decode as decode_record
from broker.bus.strays import is_stray
from broker.bus.subjects import log_stream, log_subject, partition_of
from broker.node.events import Event, make
from broker.node.tail import Tail


class Story(NamedTuple):
    """A session's turns, oldest first. The first `loose` of them are known from their records only: they have aged out
    of the log, or it is another log, so their sequences are no places to go on from. `floor` is the place before the
    first frame of the log, where that had to be read; None where the log is empty or was not read from its start."""

    turns: list[Turn]
    loose: int
    floor: int | None


class Finished(NamedTuple):
    """One `message` event per finished input and answer, and the sequence behind them. An event's id is the cursor of
    the last frame that it covers. Those of turns that have aged out, or are of another log, have none: there is no
    place to go on from, until the last of them. `placed`: there are no such."""

    events: list[Event]
    after: int
    placed: bool


class History:
    """Reads generations and finished turns. No state of its own."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._generations = Bucket(bus, "generations")
        self._sessions = Bucket(bus, "sessions")

    async def generations(self, sid: str) -> list[Generation]:
        """The session's generations, oldest first."""
        found: list[Generation] = []
        for entry in (await self._generations.all(f"{sid}.*")).values():
            try:
                found.append(decode_record(entry.value, Generation))
            except msgspec.DecodeError:
                continue  # not a generation
        return sorted(found, key=lambda generation: (generation.created_at, generation.id))

    async def queued(self, tenant: str, sid: str, last: int) -> Generation | None:
        """The generation that was accepted and has not begun, in a log that ends at `last`.

        The leader is asked: a replica may not know yet what was accepted a moment ago. A record may stay open after its
        end (OKOME is down), so what has been written since it was accepted decides, not its status alone.
        """
        entry = await self._sessions.get(f"{tenant}.{sid}")
        running = decode_record(entry.value, Session).running if entry else ""
        if not running:
            return None
        entry = await self._generations.get(f"{sid}.{running}")
        record = decode_record(entry.value, Generation) if entry else None
        return record if record is not None and record.status.open and record.after >= last else None

    async def status(self, generation: Generation) -> str:
        """Of one whose record is open as its log has it: `queued` until it begins there, and then until it ends."""
        if not generation.status.open:
            return str(generation.status)
        sid = generation.sid
        stored = await last(self._bus, log_stream(partition_of(sid)), log_subject(sid))
        try:
            frame = decode_frame(stored.data, stored.seq) if stored else None
        except FrameMalformed:
            frame = None
        if frame is None or frame.gid != generation.id:
            return str(generation.status)
        return frame.type if frame.terminal else "running"

    async def queued_event(self, generation: Generation) -> Event:
        """`queued` for a viewer that came later. Its position counts all other jobs of the model: it may be less."""
        jobs = await count_model_jobs(self._bus, generation.request.model)
        return queued(generation.id, msgspec.to_builtins(new_input(generation.request)), max(0, jobs - 1))

    async def story(self, sid: str, stream: str) -> Story:
        """Every turn: recorded ones from their records, the others (the running one too) from the log."""
        recorded = [
            of_record(generation)
            for generation in await self.generations(sid)
            if not generation.status.open and generation.last_seq
        ]
        if recorded and await self._ends(stream, sid, recorded[-1]):
            frames = await self._logged(sid, stream, recorded[-1].last_seq)
            return Story(recorded + fold(frames), _loose(recorded), None)
        frames = await self._logged(sid, stream, 0)
        logged = fold(frames)
        known = {turn.gid for turn in logged}
        loose = [turn for turn in recorded if turn.gid not in known]
        return Story(loose + logged, len(loose), frames[0].prev if frames else None)

    async def finished(self, sid: str, tail: Tail, earliest: int, last: int) -> Finished:
        """Of a session whose log began behind `earliest` and had reached `last` before this was asked."""
        story = await self.story(sid, tail.stream)
        floor = earliest if story.floor is None else story.floor
        after = last if story.floor is None else story.floor
        events: list[Event] = []
        placed = True
        for index, turn in enumerate(takewhile(attrgetter("finished"), story.turns)):
            loose = index < story.loose
            begins, ends = (
                "" if loose or seq < floor else f"{tail.incarnation}-{seq}" for seq in (turn.first_seq, turn.last_seq)
            )
            events += messages(turn, begins if begins != ends else "", ends)
            placed = placed and bool(begins)
            if not loose:
                after = turn.last_seq
        if events and not events[-1].cursor:
            events[-1].cursor = f"{tail.incarnation}-{after}"
        return Finished(events, after, placed)

    # -- inside ----------------------------------------------------------------------------------------------------

    async def _ends(self, stream: str, sid: str, turn: Turn) -> bool:
        """Whether this log holds the turn's end where its record says."""
        stored = await get(self._bus, stream, turn.last_seq)
        if stored is None or stored.subject != log_subject(sid):
            return False
        try:
            frame = decode_frame(stored.data, stored.seq)
        except FrameMalformed:
            return False
        return frame.gid == turn.gid and frame.terminal

    async def _logged(self, sid: str, stream: str, after: int) -> list[Frame]:
        """The log's frames, up to the first that is of another version."""
        frames: list[Frame] = []
        for message in await read_all(self._bus, stream, log_subject(sid), after):
            if is_stray(message.data):
                continue
            try:
                frames.append(decode_frame(message.data, message.seq))
            except FrameMalformed:
                break
        return frames


def queued(generation_id: str, input: object, position: int) -> Event:
    return make("queued", {"generation_id": generation_id, "input": input, "position": position})


def messages(turn: Turn, begins: str, ends: str) -> list[Event]:
    """A finished turn as `message` events. `begins` and `ends`: the cursors behind its input and behind all of it.

    A cursor covers what came before it, so only the last of the inputs has one.
    """
    events = [
        make("message", {"generation_id": turn.gid, "role": message.role, "content": message.content})
        for message in turn.input
    ]
    if events:
        events[-1].cursor = begins
    answer = {
        "generation_id": turn.gid,
        "role": "assistant",
        "content": turn.text,
        "finish_reason": turn.finish_reason or turn.status,
        "usage": {"prompt_tokens": turn.prompt_tokens or None, "completion_tokens": turn.completion_tokens},
        **besides(turn),
    }
    return [*events, make("message", answer, ends)]


def besides(turn: Turn) -> dict[str, Any]:
    """What is said of some answers only: why it failed or expired, as its terminal has it, and that its text is cut."""
    error = {"error": {"code": turn.code, "message": turn.error}} if turn.code else {}
    return error | ({"truncated": True} if turn.truncated else {})


def _loose(recorded: list[Turn]) -> int:
    """How many recorded turns are not of the log that the last one is in: sequences only grow in one log."""
    breaks = [index + 1 for index, (one, next) in enumerate(pairwise(recorded)) if one.last_seq >= next.first_seq]
    return breaks[-1] if breaks else 0

"""The judge: what a viewer saw against what the model must have said and what the log holds. Pure.

Every guarantee has a rule with a name; what breaks it is a `Broken`, never an exception, so that one fault run can tell
everything that went wrong.

| rule | broken when |
|---|---|
| gap, repeat, reorder | frames of the log are missing, come twice, or in another order |
| bytes | an event's data is not, byte for byte, what is stored, or it has no id or no JSON |
| script | the text is not the scripted engine's, or offsets do not follow one another |
| terminal | a generation has none, more than one, or anything after it |
| epoch | epochs do not begin at 1, or do not go up by one |
| chain | the log itself has a frame that may not follow |
| reset | the viewer was told `reset`, and nothing had earned it; or not where the log begins then |
| connection | it ended before the answer, and the viewer had to come back, though only what is behind it was hurt |
| stuck | the answer did not come to its end in time |
| takeover | another worker took over from one that lived |
| cancel | a cancel was refused, or the log holds more than it may after one (judged by the scenario) |
| grace | a session that nobody watched was cancelled too early, or not at all (by the scenario) |
| pause | an engine waited for viewers who read, or not for ones who do not, or too long (by the scenario) |
| left | a gauge did not come back to where it was (by the scenario) |
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from broker.bus.chain import Chain
from broker.bus.errors import ChainBroken
from broker.bus.frames import ATTEMPT, DONE, REASONING, START, TERMINAL, TOKEN, Frame
from broker.bus.script import Script
from compose.chaos.viewer import PLACE, Seen


class Broken(NamedTuple):
    rule: str
    detail: str


class _Told(msgspec.Struct):
    """What the judge reads of an event's data."""

    generation_id: str = ""
    offset: int = -1
    n: int = 0
    text: str = ""
    epoch: int = 0
    worker: str = ""
    earliest: str = ""


_decode = msgspec.json.Decoder(_Told).decode


@dataclass
class Asked:
    """One generation and how it may end; `script` None: a real model's, whose words nobody knows."""

    gid: str
    script: Script | None
    ends: Collection[str] = field(default=(DONE,))


def check_log(frames: Sequence[Frame], asked: Sequence[Asked], *, whole: bool = True) -> list[Broken]:
    """The log itself, in order of sequence. `whole` False: its beginning was purged, so the first answer is cut.

    Where all of it was, the answers had ended, and nobody owes it anything: what viewers saw says whether they had.
    """
    if not whole and not frames:
        return []
    broken = []
    chain = Chain(0 if whole or not frames else frames[0].prev)
    for frame in frames:
        try:
            chain.advance(frame)
        except ChainBroken as error:
            broken.append(Broken("chain", str(error)))
            break
    for one in asked:
        own = [frame for frame in frames if frame.gid == one.gid]
        ends = [frame.type for frame in own if frame.terminal]
        if len(ends) != 1:
            broken.append(Broken("terminal", f"{one.gid} has {ends or 'no terminal'} in the log"))
        elif ends[0] not in one.ends:
            why = own[-1].data[:200].decode(errors="replace")
            broken.append(Broken("terminal", f"{one.gid} ended with {ends[0]}, not {'/'.join(one.ends)}: {why}"))
        if strange := [frame.seq for frame in own if _told(frame.data) is None]:
            broken.append(Broken("bytes", f"{one.gid}: frames {strange} cannot be read"))
        else:
            broken += _check_text(one, [(frame.type, frame.data) for frame in own], begins=whole)
    return broken


def check_transcript(
    seen: Sequence[Seen],
    frames: Sequence[Frame],
    asked: Sequence[Asked],
    incarnation: str,
    *,
    resets: bool = False,
    whole: bool = True,
) -> list[Broken]:
    """A transcript from `after=0` to the last terminal, against the log as it is now, read at its leader.

    `resets`: the fault has earned one (a purge, another incarnation); what was seen before the last reset is then held
    against the script alone, because the log that it came from is gone, and from there on the viewer is to be shown all
    that the log has.
    """
    broken = [
        Broken("bytes", f"{event.name} {event.id!r} cannot be read: {event.data[:80]!r}")
        for event in seen
        if not _readable(event)
    ]
    seen = [event for event in seen if _readable(event)]
    segments, told = _segments(seen), [event for event in seen if event.name == "reset"]
    if told and not resets:
        broken.append(Broken("reset", told[0].data[:200].decode(errors="replace")))
    for number, segment in enumerate(segments):
        broken += _check_order(segment)
        if number < len(told):
            broken += _check_foreign(segment, asked)
        if number < len(told) or not told:
            for one in asked:
                own = [(event.name, event.data) for event in segment if _gid(event.data) == one.gid]
                broken += _check_text(one, own, begins=number == 0, ends=not told)
    last = segments[-1]
    after = 0
    if told:
        after, wrong = _check_place(told[-1], frames)
        broken += wrong
    if not whole:  # seen before it was taken away: the script is what is left to hold it against
        last = [event for event in last if frames and event.seq >= frames[0].seq]
    leaving = bool(told) and _has_ended(segments[-2], asked)
    broken += _check_against(last, [frame for frame in frames if frame.seq > after], incarnation, to_end=not leaving)
    return broken


def _told(data: bytes) -> _Told | None:
    """None where it is not the JSON of an event."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _readable(event: Seen) -> bool:
    """It has what every event has, and what every stored one has: a place in the log."""
    return _told(event.data) is not None and (not event.stored or PLACE.fullmatch(event.id) is not None)


def _segments(seen: Sequence[Seen]) -> list[list[Seen]]:
    """The stored events, cut where a `reset` came."""
    segments: list[list[Seen]] = [[]]
    for event in seen:
        if event.name == "reset":
            segments.append([])
        elif event.stored:
            segments[-1].append(event)
    return segments


def _check_order(events: Sequence[Seen]) -> list[Broken]:
    broken = []
    for before, event in itertools.pairwise(events):
        if event.seq == before.seq:
            broken.append(Broken("repeat", f"{event.name} {event.id} came twice"))
        elif event.seq < before.seq:
            broken.append(Broken("reorder", f"{event.name} {event.id} came after {before.id}"))
    return broken


def _check_foreign(events: Sequence[Seen], asked: Sequence[Asked]) -> list[Broken]:
    known = {one.gid for one in asked}
    strange = {gid for event in events if (gid := _gid(event.data)) not in known}
    return [Broken("bytes", f"events of {gid!r}, which nobody asked for") for gid in strange]


def _check_place(reset: Seen, frames: Sequence[Frame]) -> tuple[int, list[Broken]]:
    """The place that a `reset` says it goes on from: a frame before it would be skipped without a word."""
    place = PLACE.fullmatch(_decode(reset.data).earliest)
    if place is None:
        return 0, [Broken("reset", f"it says not where it goes on: {reset.data[:200].decode(errors='replace')}")]
    after = int(place[1])
    before = [frame.seq for frame in frames if frame.seq <= after]
    return after, [Broken("reset", f"the log begins behind {after}, it says, and has {before[:5]} …")] if before else []


def _has_ended(events: Sequence[Seen], asked: Sequence[Asked]) -> bool:
    """Whoever had seen all ends when it was told `reset` was about to leave, and does not stay for what comes then."""
    return {one.gid for one in asked} <= {_gid(event.data) for event in events if event.name in TERMINAL}


def _check_against(
    events: Sequence[Seen], frames: Sequence[Frame], incarnation: str, *, to_end: bool = True
) -> list[Broken]:
    stored = {frame.seq: frame for frame in frames}
    broken = []
    shown = set()
    for event in events:
        shown.add(event.seq)
        frame = stored.get(event.seq)
        if frame is None:
            broken.append(Broken("bytes", f"{event.name} {event.id} is not in the log"))
        elif (event.name, event.data) != (frame.type, frame.data):
            broken.append(Broken("bytes", f"{event.id}: seen {event.data[:80]!r}, stored {frame.data[:80]!r}"))
        elif event.id != f"{incarnation}-{frame.seq}":
            broken.append(Broken("bytes", f"{event.id} is not of incarnation {incarnation}"))
    missing = sorted(set(stored) - shown)
    if missing and to_end:
        broken.append(Broken("gap", f"{len(missing)} frames were never shown: {missing[:5]} …"))
    return broken


def _check_text(
    one: Asked, events: Sequence[tuple[str, bytes]], *, begins: bool = True, ends: bool = True
) -> list[Broken]:
    """One generation: epochs, offsets, and every token as the script has it.

    `begins`, `ends`: from its `start`, to its terminal; else from somewhere, to anywhere.
    """
    broken = []
    names = [name for name, _ in events]
    if not names and not (begins and ends):
        return []
    if begins and names[:1] != [START]:
        return [Broken("gap", f"{one.gid} does not begin with its start: {names[:3]}")]
    if names.count(START) > 1:
        broken.append(Broken("repeat", f"{one.gid} starts {names.count(START)} times"))
    terminals = [name for name in names if name in TERMINAL]
    if len(terminals) > 1 or (ends and not terminals):
        broken.append(Broken("terminal", f"{one.gid} was shown {terminals or 'no terminal'}"))
    elif terminals and names[-1] not in TERMINAL:
        broken.append(Broken("terminal", f"{one.gid}: {names[-1]} after {terminals[0]}"))
    first = 0 if names[0] == START else max(0, _decode(events[0][1]).offset)
    offset, text = first, []
    epoch = 0 if begins or names[0] == START else None
    for name, raw in events:
        told = _decode(raw)
        if name in (START, ATTEMPT):
            if epoch is not None and told.epoch != epoch + 1:
                broken.append(Broken("epoch", f"{one.gid}: epoch {told.epoch} after {epoch}"))
            epoch = told.epoch
        if told.offset != offset:
            broken.append(Broken("script", f"{one.gid}: {name} at offset {told.offset}, expected {offset}"))
            offset = told.offset
        if name in (TOKEN, REASONING):
            text.append(told.text)
            offset += told.n
    if one.script is None:
        return broken
    said = "".join(text)
    wanted = one.script.text(first, offset)
    if said != wanted:
        at = next(
            (i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), min(len(said), len(wanted))
        )
        broken.append(
            Broken("script", f"{one.gid}: at character {at} {said[at : at + 20]!r}, not {wanted[at : at + 20]!r}")
        )
    if terminals[:1] == [DONE] and offset != one.script.tokens:
        broken.append(Broken("gap", f"{one.gid} is done after {offset} of {one.script.tokens} tokens"))
    return broken


def _gid(data: bytes) -> str:
    return _decode(data).generation_id


def takeovers(frames: Sequence[Frame]) -> list[str]:
    """Every time that another attempt went on in this log: whose, behind whose, and where."""
    took: list[str] = []
    before = ""
    for frame in frames:
        if frame.type not in (START, ATTEMPT):
            continue
        told = _told(frame.data)
        worker = told.worker if told is not None else ""
        if frame.type == ATTEMPT:
            took.append(f"{frame.gid}: {worker} went on behind {before} at token {frame.offset}, epoch {frame.epoch}")
        before = worker
    return took

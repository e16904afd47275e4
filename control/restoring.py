"""Restoring: what a log lost and OKOME's records still tell is written into it again, in the words of the records.

A log that lost its end may end in the middle of an answer that was recorded as ended: nobody would ever end that one,
and nothing could begin behind it. What was still running needs nothing of this: it is taken over from what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog

from broker.bus.chain import Chain
from broker.bus.conversation import new_input
from broker.bus.errors import ChainBroken, FrameMalformed, WrongLastSequence
from broker.bus.frames import ATTEMPT, DONE, FAILED, START, TOKEN, USAGE, Frame, decode_frame, encode_frame
from broker.bus.kv import Bucket, Entry
from broker.bus.log import read_all, store
from broker.bus.nats import Bus
from broker.bus.records import Generation, decode, encode
from broker.bus.strays import is_stray, last_frame
from broker.bus.subjects import log_stream, log_subject, partition_of, random_id
from control.transcript import terminal_data

PIECE = 64 * 1024  # characters of text in one frame

log = structlog.get_logger("control")


class Missing(NamedTuple):
    """A frame to be written: its type, how many tokens it has, its data."""

    kind: str
    n: int
    data: dict[str, Any]


async def restore(bus: Bus, name: str, cuts: Mapping[str, int]) -> None:
    """Make the logs of these partitions whole, which lost all behind these sequences. Idempotent; raises BusError.

    `name`: whose frames they are.
    """
    generations = Bucket(bus, "generations")
    # There may be more of them than fit in memory, after years; only few of them are of what was lost.
    found: dict[str, tuple[int, str]] = {}

    def take(key: str, entry: Entry | None) -> None:
        try:
            if entry is not None and _lost(record := decode(entry.value, Generation), cuts):
                found[key] = (record.created_at, record.id)
        except msgspec.MsgspecError as error:
            log.warning("generation.unreadable", key=key, error=str(error))

    await generations.each(take)
    for key in sorted(found, key=lambda key: found[key]):
        entry = await generations.get(key)
        if entry is None or not _lost(record := decode(entry.value, Generation), cuts):
            continue
        if record.status.open:  # it is accepted behind a frame that is gone
            cut = cuts[partition_of(record.sid)]
            await generations.change(key, lambda value, cut=cut: _behind(value, cut))  # type: ignore[misc]
        else:
            await _write_again(bus, generations, name, record)


def _lost(record: Generation, cuts: Mapping[str, int]) -> bool:
    """Whether its log lost where it ended, or where it is to begin."""
    cut = cuts.get(partition_of(record.sid))
    return cut is not None and (record.after if record.status.open else record.last_seq) > cut


async def _write_again(bus: Bus, generations: Bucket, name: str, record: Generation) -> None:
    try:
        await last_frame(bus, record.sid)  # what stands behind it and is no frame would keep this out, too
        stored = await read_all(bus, log_stream(partition_of(record.sid)), log_subject(record.sid))
        frames = [decode_frame(message.data, message.seq) for message in stored if not is_stray(message.data)]
        chain = Chain(frames[0].prev if frames else 0)
        for frame in frames:
            chain.advance(frame)
        mine = [frame for frame in frames if frame.gid == record.id]
        ended = bool(mine) and mine[-1].terminal
        if not ended and (chain.open or mine) and chain.gid != record.id:
            raise ChainBroken(f"{chain.gid} stands at the end of the log")
        first, last = (mine[0].seq if mine else 0), chain.last
        epoch = mine[-1].epoch + 1 if mine else 1
        offset = mine[-1].offset + mine[-1].n if mine else 0
        attempt = random_id(8)
        for kind, n, data in [] if ended else missing(record, mine, epoch, name):
            payload = encode_frame(kind, record.id, epoch, attempt, last, offset, n, data)
            last = await store(bus, log_subject(record.sid), payload, expect_last=last)
            first = first or last
            offset += n
    except (ChainBroken, FrameMalformed, WrongLastSequence) as error:
        # The log went on without it. The record has the answer, and this log never will.
        log.warning("log.not_restored", sid=record.sid, gid=record.id, error=repr(error))
        return
    await generations.change(f"{record.sid}.{record.id}", lambda value: _stands_at(value, first, last))
    log.warning("log.restored", sid=record.sid, gid=record.id, frames=len(frames), tokens=offset)


def missing(record: Generation, mine: Sequence[Frame], epoch: int, name: str) -> list[Missing]:
    """The frames that end a recorded generation behind those that are left of it."""
    t = record.ended_at
    said = "".join(frame.fields()["text"] for frame in mine if frame.type == TOKEN)
    tokens = sum(frame.n for frame in mine)
    if mine:
        frames = [Missing(ATTEMPT, 0, {"epoch": epoch, "worker": name, "t": t})]
    else:
        given = msgspec.to_builtins(new_input(record.request))
        model = record.request.model
        frames = [Missing(START, 0, {"epoch": epoch, "model": model, "worker": name, "input": given, "t": t})]
    rest = record.text[len(said) :]
    pieces = [rest[at : at + PIECE] for at in range(0, len(rest), PIECE)]
    if record.truncated or not record.text.startswith(said):
        if record.text.startswith(said):  # it says how the answer begins, and no more
            frames += [Missing(TOKEN, 1, {"text": piece, "n": 1}) for piece in pieces]
        lost = {"code": "log_lost", "message": "the end of this answer was lost", "retryable": True, "t": t}
        return [*frames, Missing(FAILED, 0, lost)]
    left = record.completion_tokens - tokens
    for index, piece in enumerate(pieces, 1):
        n = max(1, left) if index == len(pieces) else 1
        left -= n
        frames.append(Missing(TOKEN, n, {"text": piece, "n": n}))
    if record.status == DONE:
        usage = {"prompt_tokens": record.prompt_tokens, "completion_tokens": record.completion_tokens}
        return [*frames, Missing(USAGE, 0, usage), Missing(DONE, 0, {"finish_reason": record.finish_reason, "t": t})]
    return [*frames, Missing(str(record.status), 0, terminal_data(record.status, record.code, record.error, t))]


def _behind(value: bytes | None, cut: int) -> bytes | None:
    if value is None:
        return None
    record = decode(value, Generation)
    return encode(msgspec.structs.replace(record, after=cut)) if record.after > cut else None


def _stands_at(value: bytes | None, first: int, last: int) -> bytes | None:
    if value is None:
        return None
    return encode(msgspec.structs.replace(decode(value, Generation), first_seq=first, last_seq=last))

"""The log verbs over JetStream: store (fenced), get, last, page, and what a stream is. `follow.py` has the pulls."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from broker.bus.errors import BusError, BusUnavailable, StoreRejected, WrongLastSequence
from broker.bus.nats import Bus, Msg, no_responders
from broker.bus.subjects import log_stream
from broker.bus.wire import read_headers

FENCE = "Nats-Expected-Last-Subject-Sequence"
BATCH, BATCH_SEQUENCE, BATCH_COMMIT = "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"
WRONG_LAST_SEQUENCE = 10071
FENCE_BUSY = 10164  # another publish to this subject is being proposed: the last sequence is not known yet
NO_MESSAGE = 10037
SEQUENCE_NOT_FOUND = 10043
NOTHING_FOUND = 10057  # of a deletion: what stood there was all that its block had
STREAM_NOT_FOUND = 10059
STREAM_FULL = 10077
NO_BATCHES = 10174  # the stream does not allow it
BATCH_MOST = 500  # messages; NATS takes 1 000
PAGE = 64  # messages in one direct get: the server holds the stream's lock for the whole batch
PAGE_BYTES = 512 * 1024  # of a page, and at least one message


class Stored(NamedTuple):
    """One message of a stream. `time`: when it was stored, as the server that leads the stream says it (RFC 3339)."""

    seq: int
    subject: str
    data: bytes
    headers: dict[str, str] | None = None
    time: str = ""


class StreamInfo(NamedTuple):
    """What the leader says of a stream. `incarnation` is "" where OKOME did not make it. `batches`: whether it takes
    what `store_batch` sends."""

    incarnation: str
    first_seq: int
    last_seq: int
    messages: int
    bytes: int
    max_bytes: int
    created: str
    leader: str
    batches: bool = False
    now: str = ""  # the time at the server that answered, as in `Stored.time`


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    count: int = 1
    error: _Error | None = None


_decode_ack = msgspec.json.Decoder(_Ack).decode


def read_ack(msg: Msg | None, count: int = 1) -> int | BusError:
    """The answer to a publish of `count` messages: the sequence of the last, or why not. BusUnavailable means
    undecided.
    """
    if msg is None or no_responders(msg):
        return BusUnavailable("the publish was not acknowledged")
    try:
        ack = _decode_ack(msg.data)
    except msgspec.DecodeError:
        return StoreRejected(0, f"not an acknowledgement: {msg.data[:80]!r}")
    if ack.error is None:
        return ack.seq if ack.count == count else BusUnavailable(f"{ack.count} of {count} are said to be stored")
    if ack.error.err_code == WRONG_LAST_SEQUENCE:
        digits = ack.error.description.rpartition(" ")[2]
        return WrongLastSequence(int(digits) if digits.isdigit() else None)
    if ack.error.err_code == FENCE_BUSY:
        return WrongLastSequence(None)
    if ack.error.err_code != STREAM_FULL and ack.error.code in (429, 503):
        # No leader, JetStream starting, or too much at once: ask again. A full stream is 503 too, and is an answer.
        return BusUnavailable(ack.error.description)
    return StoreRejected(ack.error.err_code or ack.error.code, ack.error.description)


def store_soon(
    bus: Bus, subject: str, payload: bytes, expect_last: int, on_answer: Callable[[int | BusError], None]
) -> None:
    """Fenced publish for the hot path: `on_answer` is called once with the sequence or the error.

    Every attempt has a reply token of its own; no answer in time is BusUnavailable, i.e. undecided: in at most 1 s, or
    as long behind the last answer to what was published to the same log before.
    Raises BusUnavailable (and never calls back) when not connected.
    """

    def hear(msg: Msg | None) -> None:
        answer = read_ack(msg)
        _note(bus, subject, answer)
        on_answer(answer)

    bus.call(subject, payload, {FENCE: str(expect_last)}, hear)


class Fenced(NamedTuple):
    """One message of a batch."""

    subject: str
    payload: bytes
    expect_last: int


def store_batch(bus: Bus, batch: str, messages: Sequence[Fenced], on_answer: Callable[[int | BusError], None]) -> None:
    """Fenced publishes to one stream of one replica: one sync of its file and one answer for all of them, which are at
    most BATCH_MOST (ADR-50; the stream's `allow_atomic`). All are stored, or none where one may not be; of those that
    nothing was answered of some may be, where the server itself has no room left.

    `on_answer` is called once: with the sequence of the last, before which the others are in their order, each one
    behind the one before; or with an error. WrongLastSequence says only that one of the fences did not hold. No answer
    in time is BusUnavailable; any other StoreRejected than a full stream's is about batches, not about these messages.
    `batch`: never used before. Raises BusUnavailable (and never calls back) when not connected.
    """
    *others, newest = messages
    count = len(messages)
    for number, one in enumerate(others, 1):
        headers = {FENCE: str(one.expect_last), BATCH: batch, BATCH_SEQUENCE: str(number)}
        bus.publish_now(one.subject, one.payload, bus.nowhere if number == 1 else "", headers)
    headers = {FENCE: str(newest.expect_last), BATCH: batch, BATCH_SEQUENCE: str(count), BATCH_COMMIT: "1"}

    def hear(msg: Msg | None) -> None:
        answer = read_ack(msg, count)
        if not isinstance(answer, StoreRejected) or answer.err_code == STREAM_FULL:  # else it is about batches
            _note(bus, newest.subject, answer)
        on_answer(answer)

    bus.call_patiently(newest.subject, newest.payload, headers, hear)


async def store(
    bus: Bus,
    subject: str,
    payload: bytes,
    *,
    expect_last: int | None = None,
    msg_id: str = "",
    headers: dict[str, str] | None = None,
    timeout: float = 1.0,
) -> int:
    """Store one message and return its sequence.

    Raises WrongLastSequence (the fence), StoreRejected, or BusUnavailable: then it is unknown whether it was stored.
    """
    fields = dict(headers or {})
    if expect_last is not None:
        fields[FENCE] = str(expect_last)
    if msg_id:
        fields["Nats-Msg-Id"] = msg_id
    try:
        answer = read_ack(await bus.request(subject, payload, timeout=timeout, headers=fields or None, publish=True))
    except BusUnavailable as error:
        answer = error
    _note(bus, subject, answer)
    if isinstance(answer, BusError):
        raise answer
    return answer


def _note(bus: Bus, subject: str, answer: int | BusError) -> None:
    being_proposed = isinstance(answer, WrongLastSequence) and answer.last is None
    if not (isinstance(answer, BusUnavailable) or being_proposed):
        bus.storing.worked(subject)
    elif bus.round_trip_ok:  # else it is not for want of room
        bus.storing.failed(subject, asyncio.get_running_loop().time(), str(answer))


async def get(
    bus: Bus, stream: str, seq: int = 0, *, next_by: str = "", last_by: str = "", timeout: float = 2.0
) -> Stored | None:
    """One message, read at the leader: at `seq`, or the next of subject `next_by` from there, or the last of `last_by`.

    None: there is none. A stream that does not exist is StoreRejected(10059).
    """
    question = {"last_by_subj": last_by} if last_by else {"seq": seq, **({"next_by_subj": next_by} if next_by else {})}
    try:
        answer = await bus.api(f"STREAM.MSG.GET.{stream}", question, timeout=timeout)
    except StoreRejected as error:
        if error.err_code == NO_MESSAGE:
            return None
        raise
    message = answer["message"]
    headers = read_headers(base64.b64decode(message["hdrs"])) if message.get("hdrs") else None
    return Stored(
        message["seq"], message["subject"], base64.b64decode(message.get("data", "")), headers, message.get("time", "")
    )


async def last(bus: Bus, stream: str, subject: str) -> Stored | None:
    """The subject's last message, read at the leader."""
    return await get(bus, stream, last_by=subject)


async def page(
    bus: Bus,
    stream: str,
    subject: str,
    after: int,
    *,
    batch: int = PAGE,
    leader: bool = False,
    bare: bool = False,
    timeout: float = 2.0,
) -> list[Stored]:
    """The next messages of `subject` with sequence > `after`, in order, at most `batch` and about PAGE_BYTES; [] where
    there are none.

    bare: of one subject, without headers and times: a long history is read so.
    A replica may answer and lag: whoever needs certainty checks the chain, and asks again with `leader=True` (one
    request per message, so a small batch is wise).
    """
    if leader:
        return await _page_at_leader(bus, stream, subject, after, min(batch, PAGE), timeout)
    question = {"seq": after + 1, "batch": batch, "max_bytes": PAGE_BYTES, "next_by_subj": subject}
    messages = await bus.collect(
        f"$JS.API.DIRECT.GET.{stream}", json.dumps(question).encode(), is_end_of_batch, timeout=timeout
    )
    status = (messages[-1].headers or {}).get("Status")
    if status not in ("204", "404"):
        raise StoreRejected(int(status or 0), (messages[-1].headers or {}).get("Description", ""))
    if bare:
        return [Stored(int(msg.field(b"Nats-Sequence")), subject, msg.data) for msg in messages[:-1]]
    return [direct_message(msg) for msg in messages[:-1]]


async def _page_at_leader(bus: Bus, stream: str, subject: str, after: int, batch: int, timeout: float) -> list[Stored]:
    found: list[Stored] = []
    while len(found) < batch:
        message = await get(bus, stream, after + 1, next_by=subject, timeout=timeout)
        if message is None:
            break
        found.append(message)
        after = message.seq
    return found


async def read_all(bus: Bus, stream: str, subject: str, after: int = 0, *, limit: int = 1_000_000) -> list[Stored]:
    """Everything of `subject` after a sequence, in pages, up to what the leader says is the last; at most `limit`.

    For cold paths (takeover, context, records). Raises BusUnavailable where replicas and leader do not answer.
    """
    end = await last(bus, stream, subject)
    found: list[Stored] = []
    lagging = 0
    while end is not None and after < end.seq and len(found) < limit:
        wanted = min(PAGE, limit - len(found))
        batch = await page(bus, stream, subject, after, batch=wanted, leader=lagging >= 3, bare=True)
        if not batch:
            lagging += 1
            if lagging > 4:
                raise BusUnavailable(
                    f"{stream} has no message after {after}, and its leader says {end.seq} is the last"
                )
            continue
        found.extend(batch)
        after = batch[-1].seq
    return found


async def logged_partitions(bus: Bus) -> list[str]:
    """Every partition that has a log, also one in which no session is born any more."""
    found: list[str] = []
    while True:
        page = await bus.api("STREAM.NAMES", {"subject": "tok.>", "offset": len(found)})
        found += page["streams"] or []
        if not page["streams"] or len(found) >= page["total"]:
            prefix = log_stream("")
            return [name.removeprefix(prefix) for name in found if name.startswith(prefix)]


async def stream_info(bus: Bus, stream: str, *, timeout: float = 2.0) -> StreamInfo:
    """Read at the leader; raises StoreRejected(10059) where there is no such stream."""
    answer = await bus.api(f"STREAM.INFO.{stream}", timeout=timeout)
    config, state = answer["config"], answer["state"]
    return StreamInfo(
        incarnation=(config.get("metadata") or {}).get("incarnation", ""),
        first_seq=state["first_seq"],
        last_seq=state["last_seq"],
        messages=state["messages"],
        bytes=state["bytes"],
        max_bytes=config.get("max_bytes", -1),
        created=answer.get("created", ""),
        leader=(answer.get("cluster") or {}).get("leader", ""),
        batches=config.get("num_replicas", 1) == 1 and bool(config.get("allow_atomic")),
        now=answer.get("ts", ""),
    )


def is_end_of_batch(msg: Msg) -> bool:
    return not msg.data and msg.headers is not None and "Status" in msg.headers


def direct_message(msg: Msg) -> Stored:
    headers = msg.headers or {}
    stamp = headers.get("Nats-Time-Stamp", "")
    return Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], msg.data, headers, stamp)

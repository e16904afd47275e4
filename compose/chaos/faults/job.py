"""Faults of the job queue: a job delivered twice, a nak and an ack that come too late. Proven by asking JetStream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec

from broker.bus.errors import BusError
from broker.bus.jobs import consumer_name
from broker.bus.log import Stored, page, store
from broker.bus.nats import Bus, Msg
from broker.bus.pull import parse_reply
from broker.bus.queue import nak
from broker.bus.records import Beat, Job, decode
from broker.bus.subjects import JOBS_STREAM, beat_subject
from compose.chaos.answers import PATIENT, answered
from compose.chaos.fault import DidNotHappen, Fault, comes_true, shows

SIGN_TIMEOUT = 20.0
WRONG_TIMEOUT = 3.0
"""The same in a control run, where it will not happen."""
NAKED = "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED"
BEATS = 0.6
"""Seconds in which every worker has said twice what it holds."""


async def deliveries(bus: Bus) -> dict[str, str]:
    """gid → reply subject of the newest delivery of its job, as the workers' beats have it. Raises Unanswered."""
    held: dict[str, str] = {}

    async def hear(msg: Msg) -> None:
        held.update(decode(msg.data, Beat).held)

    subscription = await answered(lambda: bus.subscribe(beat_subject("*"), hear))
    await asyncio.sleep(BEATS)  # beats come by the clock
    await bus.unsubscribe(subscription)
    return held


async def find_job(bus: Bus, gid: str) -> Stored:
    """The job's message. Raises KeyError where it is no longer queued or held, and BusError."""
    after = 0
    while messages := await page(bus, JOBS_STREAM, "job.*.*", after):
        for message in messages:
            if decode(message.data, Job).gid == gid:
                return message
        after = messages[-1].seq
    raise KeyError(gid)


async def _delivered(bus: Bus) -> int:
    """Up to which message of the stream jobs were delivered."""
    answer = await bus.api(f"CONSUMER.INFO.{JOBS_STREAM}.{consumer_name('scripted')}")
    sequence: int = answer["delivered"]["stream_seq"]
    return sequence


def duplicate(bus: Bus, gid: str, *, wrong: bool) -> Fault:
    """The same job once more in the queue, under another message id; `wrong`: under the id it has."""
    first = stored = 0

    async def strike() -> None:
        nonlocal first, stored
        try:
            job = await answered(lambda: find_job(bus, gid))
        except KeyError:
            raise DidNotHappen(f"job {gid} has ended by itself") from None
        first = job.seq
        id = (job.headers or {}).get("Nats-Msg-Id", gid) if wrong else f"{gid}@again{job.seq}"
        common = ".".join((*job.subject.split(".")[:2], "any"))
        try:
            # Asked twice it is the same copy: its message id says so.
            stored = await answered(lambda: store(bus, common, job.data, msg_id=id, timeout=PATIENT))
        except BusError as error:
            raise DidNotHappen(f"the copy was not stored: {error}") from error

    async def twice() -> str | None:
        another = stored > first and await _delivered(bus) >= stored
        return f"job {gid} was stored again as {stored} and delivered" if another else None

    timeout = WRONG_TIMEOUT if wrong else SIGN_TIMEOUT
    return Fault(f"job of {gid}", strike, lambda: comes_true(twice, f"another delivery of {gid}", timeout))


def redeliver(bus: Bus, gid: str, reply: str, aim: str) -> Fault:
    """A nak of a delivery although its worker lives: whether it is the newest one, or stale, `reply` says.

    Proven by JetStream's word that it took the nak of this very delivery: it delivers the job again then. In a control
    run `aim` is nobody's delivery.
    """
    naked = parse_reply(reply)
    assert naked is not None
    taken = False
    subscribed = AsyncExitStack()

    async def hear(msg: Msg) -> None:
        nonlocal taken
        told = msgspec.json.decode(msg.data)
        taken = taken or (told["stream_seq"], told["consumer_seq"]) == (naked.seq, naked.consumer_seq)

    async def strike() -> None:
        subscription = await answered(lambda: bus.subscribe(f"{NAKED}.{JOBS_STREAM}.{naked.consumer}", hear))
        subscribed.push_async_callback(bus.unsubscribe, subscription)
        await answered(lambda: nak(bus, aim))

    def again() -> str | None:
        return f"JetStream took the nak of delivery {naked.consumer_seq} of {gid}" if taken else None

    timeout = SIGN_TIMEOUT if aim == reply else WRONG_TIMEOUT
    return Fault(
        f"delivery of {gid}",
        strike,
        lambda: shows(again, f"a redelivery of {gid}", timeout),
        subscribed.aclose,
    )


def settle(bus: Bus, gid: str, reply: str, running: Callable[[], bool], *, wrong: bool) -> Fault:
    """An ack of a delivery whose job is not done: the job leaves the queue while it is `running`.

    `wrong`: `reply` is nobody's.
    """

    async def strike() -> None:
        await answered(lambda: bus.publish(reply, b"+ACK"))

    async def gone() -> str | None:
        try:
            await find_job(bus, gid)
        except KeyError:
            return f"job {gid} is in the queue no more, and its answer goes on" if running() else None
        return None

    timeout = WRONG_TIMEOUT if wrong else SIGN_TIMEOUT
    return Fault(f"job of {gid}", strike, lambda: comes_true(gone, f"the loss of job {gid}", timeout))

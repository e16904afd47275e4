"""Faults of streams and consumers: deleted, purged, made anew, filled, led by another. Proven by asking JetStream."""

from __future__ import annotations

from typing import Any

from broker.bus.errors import StoreRejected
from broker.bus.log import STREAM_FULL, STREAM_NOT_FOUND, last, store, stream_info
from broker.bus.nats import Bus
from broker.bus.queue import CONSUMER_NOT_FOUND
from broker.bus.subjects import log_stream, log_subject, new_session_id
from compose.chaos.answers import PATIENT, answered
from compose.chaos.fault import DidNotHappen, Fault, comes_true

SIGN_TIMEOUT = 20.0
WRONG_TIMEOUT = 3.0
"""The same in a control run, where it will not happen."""
ELECTION_TIMEOUT = 30.0


async def consumers(bus: Bus, stream: str) -> list[str]:
    """Names of a stream's consumers. Raises StoreRejected and Unanswered."""
    answer = await answered(lambda: bus.api(f"CONSUMER.NAMES.{stream}"))
    return list(answer.get("consumers") or [])


def delete_consumer(bus: Bus, stream: str, name: str, aim: str) -> Fault:
    """`aim` is the name that is deleted. Tails replace consumers by themselves, so the server's word is needed."""
    confirmed: set[str] = set()

    async def strike() -> None:
        try:
            told = await answered(lambda: bus.api(f"CONSUMER.DELETE.{stream}.{aim}", timeout=PATIENT))
            if told.get("success"):
                confirmed.add(aim)
        except StoreRejected as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise

    async def gone() -> str | None:
        if name not in confirmed:
            return None
        try:
            await bus.api(f"CONSUMER.INFO.{stream}.{name}")
        except StoreRejected as error:
            return (
                f"the server deleted {name}, and {stream} knows it no more"
                if error.err_code == CONSUMER_NOT_FOUND
                else None
            )
        return None

    timeout = SIGN_TIMEOUT if aim == name else WRONG_TIMEOUT
    what = f"the end of consumer {name}"
    return Fault(f"consumer {name} of {stream}", strike, lambda: comes_true(gone, what, timeout))


def purge(bus: Bus, sid: str, aim: str, *, before: int = 0) -> Fault:
    """Take away a session's frames below sequence `before`, or all of them. `aim` is the session that is purged."""
    stream = log_stream(sid[:2])
    removed = 0

    async def strike() -> None:
        nonlocal removed
        question: dict[str, Any] = {"filter": log_subject(aim), **({"seq": before} if before else {})}
        verb = f"STREAM.PURGE.{log_stream(aim[:2])}"
        removed = (await answered(lambda: bus.api(verb, question, timeout=PATIENT)))["purged"]

    async def purged() -> str | None:
        first = await bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": log_subject(sid)})
        left = (first["state"].get("subjects") or {}).get(log_subject(sid), 0)
        if not removed or (aim != sid):
            return None
        return f"{removed} frames of {sid} were taken away, {left} are left"

    timeout = SIGN_TIMEOUT if aim == sid else WRONG_TIMEOUT
    return Fault(f"the log of {sid}", strike, lambda: comes_true(purged, f"a purge of {sid}", timeout))


def recreate(bus: Bus, partition: str, incarnation: str, aim: str) -> Fault:
    """Delete a partition's stream; OKOME makes it anew. `aim` is the stream that is deleted."""
    stream = log_stream(partition)

    async def strike() -> None:
        try:
            await answered(lambda: bus.api(f"STREAM.DELETE.{aim}", timeout=PATIENT))
        except StoreRejected as error:
            if error.err_code != STREAM_NOT_FOUND:
                raise

    async def anew() -> str | None:
        try:
            now = (await stream_info(bus, stream)).incarnation
        except StoreRejected:
            return None  # deleted, and not yet made anew
        return f"{stream} is of incarnation {now}, not {incarnation}" if now and now != incarnation else None

    timeout = ELECTION_TIMEOUT if aim == stream else WRONG_TIMEOUT
    return Fault(stream, strike, lambda: comes_true(anew, f"another incarnation of {stream}", timeout))


def fill(bus: Bus, partition: str, aim: str) -> Fault:
    """Leave a partition no room: the limit of `aim` is set to what it holds now; `undo` gives it back."""
    stream = log_stream(partition)
    before: dict[str, Any] = {}

    async def limit() -> None:
        config = (await bus.api(f"STREAM.INFO.{aim}"))["config"]
        if not before:
            before.update(config)
        size = (await stream_info(bus, aim)).bytes
        await bus.api(f"STREAM.UPDATE.{aim}", {**config, "max_bytes": max(size, 1) + 2048})

    async def full() -> str | None:
        try:
            await store(bus, log_subject(new_session_id(partition)), b"x" * 65536)
        except StoreRejected as error:
            return f"{stream} refuses another frame ({error.err_code})" if error.err_code == STREAM_FULL else None
        if aim != stream:
            raise DidNotHappen(f"{stream} had room for another 64 KiB")
        await limit()  # room again: OKOME, which looks every few seconds, has just repaired the limit
        return None

    async def undo() -> None:
        if before:
            await answered(lambda: bus.api(f"STREAM.UPDATE.{aim}", before))

    timeout = SIGN_TIMEOUT if aim == stream else WRONG_TIMEOUT
    sign = f"a refusal of {stream}"
    return Fault(f"{stream}, full", lambda: answered(limit), lambda: comes_true(full, sign, timeout), undo)


def step_down(bus: Bus, stream: str, leader: str, aim: str) -> Fault:
    """The leader of a stream is asked to let another one lead. `aim`: whose leader is asked."""

    async def strike() -> None:
        await answered(lambda: bus.api(f"STREAM.LEADER.STEPDOWN.{aim}", timeout=PATIENT))

    async def moved() -> str | None:
        now = (await stream_info(bus, stream)).leader
        return f"{stream} is led by {now}, not {leader}" if now and now != leader else None

    timeout = ELECTION_TIMEOUT if aim == stream else WRONG_TIMEOUT
    return Fault(
        f"leader {leader} of {stream}", strike, lambda: comes_true(moved, f"another leader of {stream}", timeout)
    )


async def last_sequence(bus: Bus, sid: str) -> int:
    """Of a session's log, at its leader; 0 where there is none."""
    found = await answered(lambda: last(bus, log_stream(sid[:2]), log_subject(sid)))
    return found.seq if found is not None else 0

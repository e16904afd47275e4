"""Deleting sessions: everything goes, whoever is interrupted or comes in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from broker.bus import operations as ops
from broker.bus.errors import BusUnavailable, Refusal
from broker.bus.kv import Bucket
from broker.bus.log import last
from broker.bus.nats import Bus, Msg
from broker.bus.revocations import Revocations
from control.app import Okome
from control.deletions import Deletions
from tests.control.okome import (
    TENANT,
    answer,
    connected,
    frames,
    generate,
    generation_record,
    jobs,
    new_session,
    refused,
    replica,
    session_record,
    until,
    verifier,
    worker,
)
from tests.fixtures.nats_server import NatsServer


async def unknown(bus: Bus, operation: str, sid: str) -> bool:
    try:
        await bus.ask(operation, ops.OfSession(TENANT, sid), dict)
    except Refusal as refusal:
        return refusal.code == "unknown_session"
    return False


async def test_a_deleted_session_is_cancelled_revoked_purged_and_forgotten(okome: Okome, bus: Bus) -> None:
    ended: asyncio.Queue[Msg] = asyncio.Queue()
    cancelled: asyncio.Queue[Msg] = asyncio.Queue()
    await bus.subscribe("node.all.ended", ended.put)
    await bus.subscribe("worker.w1.cancel", cancelled.put)
    async with worker(okome, bus) as played:
        made = await bus.ask("session_create", ops.CreateSession(TENANT), ops.SessionToken)
        sid, other = made.session_id, await new_session(bus)
        first = await generate(bus, sid)
        await answer(bus, sid, first, "a", "b")
        await answer(bus, other, await generate(bus, other), "kept")
        await bus.ask("generation_ended", ops.GenerationEnded(sid, first.generation_id), dict)
        second = await generate(bus, sid)
        played.held[second.generation_id] = "$JS.ACK.x"
        await until(lambda: okome.pulse.holder(second.generation_id), "the worker is seen to hold it")
        await bus.ask("session_delete", ops.OfSession(TENANT, sid), dict)
        async with asyncio.timeout(5):
            assert json.loads((await ended.get()).data) == {"sid": sid, "reason": "deleted"}
            assert json.loads((await cancelled.get()).data) == {"sid": sid, "gid": second.generation_id}
        assert await session_record(bus, sid) is None
        assert await generation_record(bus, sid, first.generation_id) is None
        assert await frames(bus, sid) == []
        assert len(await frames(bus, other)) == 3
        revocations = Revocations()
        entry = await Bucket(bus, "revoked").get(f"sid.{sid}")
        assert entry is not None
        revocations.take(f"sid.{sid}", entry.value)
        assert revocations.revoked((await verifier(bus)).session(made.token))
        assert await unknown(bus, "session_delete", sid)
        intent = await last(bus, "KV_sessions", f"$KV.sessions.deleting.{TENANT}.{sid}")
        assert intent is not None
        assert (intent.headers or {})["Nats-TTL"] == "60s", "every look at intents reads all their marks"


async def test_what_is_deleted_keeps_no_place_for_ever(okome: Okome, bus: Bus) -> None:
    """The deletions themselves are forgotten by the buckets: of a session, of its generations, and of one that lost."""
    async with worker(okome, bus):
        sid = await new_session(bus)
        made = await generate(bus, sid)
        await answer(bus, sid, made, "a")
        await bus.ask("session_delete", ops.OfSession(TENANT, sid), dict)
    for bucket, key in (("sessions", f"{TENANT}.{sid}"), ("generations", f"{sid}.{made.generation_id}")):
        deletion = await last(bus, f"KV_{bucket}", f"$KV.{bucket}.{key}")
        assert deletion is not None
        assert deletion.headers is not None
        assert deletion.headers["KV-Operation"] == "DEL"
        assert deletion.headers["Nats-TTL"] == f"{okome.settings.deleted_life}s"


async def left(bus: Bus, sid: str) -> list[str]:
    """What there still is of a session."""
    found = [f"sessions/{key}" for key in await Bucket(bus, "sessions").all() if sid in key]
    found += [f"generations/{key}" for key in await Bucket(bus, "generations").all() if sid in key]
    return found + [f"{frame.type} in its log" for frame in await frames(bus, sid)]


async def revoked(bus: Bus, sid: str) -> bool:
    return await Bucket(bus, "revoked").get(f"sid.{sid}") is not None


async def answered_session(bus: Bus) -> str:
    sid = await new_session(bus)
    await answer(bus, sid, await generate(bus, sid), "a", "b")
    return sid


STEPS: dict[str, tuple[type, str, Callable[[Any, str], bool]]] = {
    "its record": (Bucket, "delete", lambda bucket, key: bucket.name == "sessions" and key.startswith(TENANT)),
    "its generations": (Bucket, "delete", lambda bucket, key: bucket.name == "generations"),
    "its log": (Deletions, "_purge", lambda deletions, sid: True),
    "its tokens": (Bucket, "put", lambda bucket, key: bucket.name == "revoked"),
    "the intent": (Bucket, "delete", lambda bucket, key: bucket.name == "sessions" and not key.startswith(TENANT)),
}


def interrupt(monkeypatch: pytest.MonkeyPatch, step: str) -> list[str]:
    """That step gets no answer, the first time; the list tells that it happened."""
    kind, verb, is_it = STEPS[step]
    act = getattr(kind, verb)
    happened: list[str] = []

    async def once(self: Any, key: str, *args: Any) -> Any:
        if not happened and is_it(self, key):
            happened.append(key)
            raise BusUnavailable("no answer in time")
        return await act(self, key, *args)

    monkeypatch.setattr(kind, verb, once)
    return happened


@pytest.mark.parametrize("step", STEPS)
async def test_a_deletion_that_was_interrupted_is_finished_by_its_repeat(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Meanwhile there is no such session; but its tokens are not void, as they may be all that its client has."""
    async with (
        replica(fresh_nats.url, reconcile_interval=60) as okome,
        connected(fresh_nats.url) as bus,
        worker(okome, bus),
    ):
        sid = await answered_session(bus)
        happened = interrupt(monkeypatch, step)
        with pytest.raises(Refusal, match="unavailable"):
            await bus.ask("session_delete", ops.OfSession(TENANT, sid), dict)
        assert happened
        if step != "its record":
            assert await session_record(bus, sid) is None
            assert await unknown(bus, "session_token", sid)
            assert (await refused(bus, sid)).code == "unknown_session"
        assert await revoked(bus, sid) == (step == "the intent")
        await bus.ask("session_delete", ops.OfSession(TENANT, sid), dict)
        assert await left(bus, sid) == []
        assert await revoked(bus, sid)
        assert await unknown(bus, "session_delete", sid)


@pytest.mark.parametrize("step", STEPS)
async def test_a_deletion_that_nobody_asks_for_again_is_finished_by_another_replica(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with connected(fresh_nats.url) as bus:
        async with replica(fresh_nats.url, reconcile_interval=60) as okome, worker(okome, bus):
            sid, other = await answered_session(bus), await answered_session(bus)
            happened = interrupt(monkeypatch, step)
            with pytest.raises(Refusal, match="unavailable"):
                await bus.ask("session_delete", ops.OfSession(TENANT, sid), dict)
            assert happened

        async def gone() -> bool:
            try:
                return not await left(bus, sid) and await revoked(bus, sid)
            except BusUnavailable:  # its log was purged while it was read
                return False

        async with replica(fresh_nats.url):
            await until(gone, "nothing of it is left")
        assert len(await frames(bus, other)) == 4


async def test_whoever_asks_for_a_generation_while_its_session_is_deleted_gets_none(
    okome: Okome, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read the session before, and comes for its place behind the deletion."""
    stands, over = asyncio.Event(), asyncio.Event()
    update = Bucket.update

    async def slow(self: Bucket, key: str, value: bytes, revision: int) -> int:
        if self.name == "sessions":
            stands.set()
            await over.wait()
        return await update(self, key, value, revision)

    sid = await new_session(bus)
    async with worker(okome, bus):
        monkeypatch.setattr(Bucket, "update", slow)
        asking = asyncio.create_task(refused(bus, sid))
        await stands.wait()
        await bus.ask("session_delete", ops.OfSession(TENANT, sid), dict)
        over.set()
        assert (await asking).code == "unknown_session"
        assert await left(bus, sid) == []
        assert await jobs(bus) == {}


async def test_a_generation_that_was_accepted_before_its_session_went_goes_with_it(
    okome: Okome, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It got its place when the deletion had read the session: that is read again, so that nobody runs it."""
    stands, over = asyncio.Event(), asyncio.Event()
    delete = Bucket.delete

    async def slow(self: Bucket, key: str, revision: int | None = None) -> None:
        if self.name == "sessions" and not stands.is_set():
            stands.set()
            await over.wait()
        await delete(self, key, revision)

    sid = await new_session(bus)
    cancelled: asyncio.Queue[Msg] = asyncio.Queue()
    await bus.subscribe("worker.w1.cancel", cancelled.put)
    async with worker(okome, bus) as played:
        monkeypatch.setattr(Bucket, "delete", slow)
        deleting = asyncio.create_task(bus.ask("session_delete", ops.OfSession(TENANT, sid), dict, timeout=8))
        await stands.wait()
        gid = (await generate(bus, sid)).generation_id
        played.held[gid] = "$JS.ACK.x"
        await until(lambda: okome.pulse.holder(gid), "the worker is seen to hold it")
        over.set()
        await deleting
        async with asyncio.timeout(5):
            assert json.loads((await cancelled.get()).data) == {"sid": sid, "gid": gid}
        assert await left(bus, sid) == []

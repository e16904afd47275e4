"""Sessions: known to their tenant only, opened by tokens, gone when they are deleted."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from broker.bus import operations as ops
from broker.bus.credentials import Verifier
from broker.bus.errors import Refusal
from broker.bus.kv import Bucket
from broker.bus.log import last
from broker.bus.nats import Bus, Msg
from broker.bus.records import Session
from broker.bus.revocations import Revocations
from broker.bus.subjects import is_session_id, log_stream
from control.app import Okome
from tests.control.okome import (
    TENANT,
    answer,
    frames,
    generate,
    generation_record,
    jobs,
    last_sequences,
    new_session,
    session_record,
    until,
    worker,
)


async def refusal(bus: Bus, operation: str, question: msgspec.Struct) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await bus.ask(operation, question, dict)
    return caught.value


async def verifier(bus: Bus) -> Verifier:
    made = Verifier()
    for kid, entry in (await Bucket(bus, "jwks").all()).items():
        made.take(kid, entry.value)
    return made


async def test_a_session_has_a_partition_a_record_and_a_token(okome: Okome, bus: Bus) -> None:
    question = ops.CreateSession(TENANT, title="t", metadata={"a": 1}, on_disconnect="cancel", subject="k1")
    made = await bus.ask("session_create", question, ops.SessionToken)
    assert is_session_id(made.session_id)
    assert made.session_id[:2] in okome.partitions
    record = await session_record(bus, made.session_id)
    assert record is not None
    assert (record.title, record.metadata, record.on_disconnect, record.running) == ("t", {"a": 1}, "cancel", "")
    claims = (await verifier(bus)).session(made.token)
    assert (claims.tenant, claims.sid, claims.scope, claims.policy, claims.subject) == (
        TENANT, made.session_id, "write", "cancel", "k1",
    )  # fmt: skip
    assert claims.expires_at == made.expires_at


async def test_a_fresh_token_opens_the_same_session(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    made = await bus.ask("session_token", ops.OfSession(TENANT, sid, "k2"), ops.SessionToken)
    assert (await verifier(bus)).session(made.token).sid == sid


@pytest.mark.parametrize("operation", ["session_token", "session_delete", "session_patch"])
@pytest.mark.parametrize("sid", ["00aaaaaaaaaaaaaaaaaaaa", "x", "a.b", "*", ">", "00 aaaaaaaa", ""])
async def test_a_session_that_is_not_there_is_unknown_whatever_it_is_called(
    okome: Okome, bus: Bus, operation: str, sid: str
) -> None:
    kind = ops.PatchSession if operation == "session_patch" else ops.OfSession
    assert (await refusal(bus, operation, kind(TENANT, sid))).code == "unknown_session"


@pytest.mark.parametrize("tenant", ["other", "*", ">", "", "acme.x"])
async def test_another_tenants_session_is_unknown(okome: Okome, bus: Bus, tenant: str) -> None:
    sid = await new_session(bus)
    assert (await refusal(bus, "session_delete", ops.OfSession(tenant, sid))).code == "unknown_session"
    assert await session_record(bus, sid) is not None


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"on_disconnect": "explode"}, "malformed", "on_disconnect"),
        ({"model": "nobody"}, "unknown_model", "model"),
        ({"title": "x" * 201}, "malformed", "title"),
        ({"metadata": {"x": "y" * 20_000}}, "malformed", "metadata"),
        ({"tenant": "a.b"}, "malformed", "tenant"),
    ],
)
async def test_a_session_that_cannot_be_is_refused_and_nothing_is_written(
    okome: Okome, bus: Bus, fields: dict[str, object], code: str, param: str
) -> None:
    streams = (await bus.api("STREAM.NAMES"))["streams"]
    watched = [name for name in streams if name != "KV_secrets"]
    before = await last_sequences(bus, watched)
    question = ops.CreateSession(**{"tenant": TENANT, "idempotency_key": "k", **fields})  # type: ignore[arg-type]
    refused = await refusal(bus, "session_create", question)
    assert (refused.code, refused.param) == (code, param)
    assert await last_sequences(bus, watched) == before


async def test_bytes_that_are_no_question_are_malformed(okome: Okome, bus: Bus) -> None:
    for payload in (b"{", b"[]", b'{"tenant": 7}', b"\xff", b'{"tenant": "acme", "metadata": 3}'):
        msg = await bus.request("okome.v1.session_create", payload)
        assert json.loads(msg.data)["error"]["code"] == "malformed"


async def test_a_patch_changes_what_it_names(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus, title="old", metadata={"a": 1})
    changed = await bus.ask("session_patch", ops.PatchSession(TENANT, sid, title="new"), Session)
    assert (changed.title, changed.metadata) == ("new", {"a": 1})
    changed = await bus.ask("session_patch", ops.PatchSession(TENANT, sid, metadata={}), Session)
    assert (changed.title, changed.metadata) == ("new", {})
    assert await session_record(bus, sid) == changed


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
        assert (await refusal(bus, "session_delete", ops.OfSession(TENANT, sid))).code == "unknown_session"


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


async def test_a_session_made_twice_under_one_idempotency_key_is_one(okome: Okome, bus: Bus) -> None:
    question = ops.CreateSession(TENANT, idempotency_key="k")
    made = await asyncio.gather(*(bus.ask("session_create", question, ops.SessionToken, timeout=8) for _ in range(5)))
    assert len({each.session_id for each in made}) == 1
    assert len(await Bucket(bus, "sessions").all(f"{TENANT}.*")) == 1


async def test_sessions_are_spread_over_the_partitions(okome: Okome, bus: Bus) -> None:
    sids = await asyncio.gather(*(new_session(bus) for _ in range(40)))
    assert {log_stream(sid[:2]) for sid in sids} == {"TOK_00", "TOK_01"}
    assert await jobs(bus) == {}

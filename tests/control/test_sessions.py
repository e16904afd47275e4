"""Sessions: known to their tenant only, opened by tokens, gone when they are deleted."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from broker.bus import operations as ops
from broker.bus.errors import Refusal
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.records import Session
from broker.bus.subjects import is_session_id, log_stream
from control.app import Okome
from tests.control.okome import (
    TENANT,
    jobs,
    last_sequences,
    new_session,
    session_record,
    verifier,
)


async def refusal(bus: Bus, operation: str, question: msgspec.Struct) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await bus.ask(operation, question, dict)
    return caught.value


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


async def test_a_session_made_twice_under_one_idempotency_key_is_one(okome: Okome, bus: Bus) -> None:
    question = ops.CreateSession(TENANT, idempotency_key="k")
    made = await asyncio.gather(*(bus.ask("session_create", question, ops.SessionToken, timeout=8) for _ in range(5)))
    assert len({each.session_id for each in made}) == 1
    assert len(await Bucket(bus, "sessions").all(f"{TENANT}.*")) == 1


async def test_sessions_are_spread_over_the_partitions(okome: Okome, bus: Bus) -> None:
    sids = await asyncio.gather(*(new_session(bus) for _ in range(40)))
    assert {log_stream(sid[:2]) for sid in sids} == {"TOK_00", "TOK_01"}
    assert await jobs(bus) == {}

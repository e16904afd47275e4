"""Logins, tickets and API keys: each opens what it is for, and what is used once is used once."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from broker.bus import operations as ops
from broker.bus.credentials import Verifier, digest
from broker.bus.errors import Refusal
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from control.app import Okome
from tests.control.okome import TENANT, connected, new_session, replica, until
from tests.fixtures.clock import clock_off
from tests.fixtures.nats_server import NatsServer


async def refused(bus: Bus, operation: str, question: msgspec.Struct) -> str:
    with pytest.raises(Refusal) as caught:
        await bus.ask(operation, question, dict)
    return caught.value.code


async def login_of(bus: Bus, question: ops.Login) -> tuple[str, str]:
    made = await bus.ask("login", question, ops.LoggedIn)
    check = Verifier()
    for kid, entry in (await Bucket(bus, "jwks").all()).items():
        check.take(kid, entry.value)
    claims = check.login(made.token)
    assert claims.tenant == made.tenant
    return claims.tenant, claims.subject


async def test_an_api_key_logs_in_as_its_tenant(okome: Okome, bus: Bus) -> None:
    made = await bus.ask("key_create", ops.CreateKey("ci", TENANT), dict)
    assert await login_of(bus, ops.Login(api_key=made["key"])) == (TENANT, made["id"])
    assert (await login_of(bus, ops.Login(api_key="ok_first")))[0] == "default"


@pytest.mark.parametrize(
    "question", [ops.Login(), ops.Login(api_key="ok_wrong"), ops.Login(api_key="internal"), ops.Login(ticket="x")]
)
async def test_who_shows_nothing_that_counts_is_unauthenticated(okome: Okome, bus: Bus, question: ops.Login) -> None:
    assert await refused(bus, "login", question) == "unauthenticated"


async def test_the_machines_own_user_logs_in_as_the_default_tenant(okome: Okome, bus: Bus) -> None:
    assert await login_of(bus, ops.Login(loopback=True)) == ("default", "login")


async def test_a_revoked_key_logs_nobody_in_and_revokes_its_tokens(okome: Okome, bus: Bus) -> None:
    made = await bus.ask("key_create", ops.CreateKey("ci", TENANT), dict)
    listed = await bus.ask("key_list", {}, dict)
    assert {key["name"] for key in listed["keys"]} == {"first", "ci"}
    assert "key" not in listed["keys"][0]
    await bus.ask("key_revoke", ops.RevokeKey(made["id"]), dict)
    assert await refused(bus, "login", ops.Login(api_key=made["key"])) == "unauthenticated"
    assert await Bucket(bus, "revoked").get(f"key.{made['id']}") is not None
    assert await refused(bus, "key_revoke", ops.RevokeKey(made["id"])) == "not_found"


async def test_an_api_key_is_kept_as_a_hash(okome: Okome, bus: Bus) -> None:
    made = await bus.ask("key_create", ops.CreateKey("ci"), dict)
    kept = await Bucket(bus, "keys").all()
    assert digest(made["key"]) in kept
    assert not any(made["key"].encode() in entry.value for entry in kept.values())


@pytest.mark.parametrize("question", [ops.CreateKey(" "), ops.CreateKey("ci", "a.b"), ops.CreateKey("ci", "")])
async def test_a_key_without_a_name_or_tenant_is_malformed(okome: Okome, bus: Bus, question: ops.CreateKey) -> None:
    assert await refused(bus, "key_create", question) == "malformed"


async def test_a_ticket_opens_its_session_once(okome: Okome, bus: Bus) -> None:
    sid = await new_session(bus)
    made = await bus.ask("ticket_create", ops.CreateTicket(TENANT, "session", sid, "read"), ops.TicketCreated)
    question = ops.RedeemTicket(made.ticket, sid)
    tries = await asyncio.gather(
        *(bus.ask("ticket_redeem", question, ops.SessionToken) for _ in range(8)), return_exceptions=True
    )
    (opened,) = [each for each in tries if isinstance(each, ops.SessionToken)]
    assert (opened.session_id, opened.scope) == (sid, "read")
    assert {each.code for each in tries if isinstance(each, Refusal)} == {"unauthenticated"}


async def test_a_ticket_shown_at_the_wrong_door_is_refused_and_not_spent(okome: Okome, bus: Bus) -> None:
    sid, other = await new_session(bus), await new_session(bus)
    made = await bus.ask("ticket_create", ops.CreateTicket(TENANT, "session", sid), ops.TicketCreated)
    assert await refused(bus, "ticket_redeem", ops.RedeemTicket(made.ticket, other)) == "forbidden"
    assert await refused(bus, "login", ops.Login(ticket=made.ticket)) == "forbidden"
    assert (await bus.ask("ticket_redeem", ops.RedeemTicket(made.ticket, sid), ops.SessionToken)).session_id == sid


async def test_what_a_ticket_opens_ends_with_the_key_that_asked_for_it(okome: Okome, bus: Bus) -> None:
    """Or whoever stole a key would keep a session for ever, by a ticket and fresh tokens."""
    sid, key = await new_session(bus), await bus.ask("key_create", ops.CreateKey("ci", TENANT), dict)
    question = ops.CreateTicket(TENANT, "session", sid, "write", key["id"])
    early, late = [(await bus.ask("ticket_create", question, ops.TicketCreated)).ticket for _ in range(2)]
    opened = await bus.ask("ticket_redeem", ops.RedeemTicket(early, sid), ops.SessionToken)
    check = Verifier()
    for kid, entry in (await Bucket(bus, "jwks").all()).items():
        check.take(kid, entry.value)
    assert check.session(opened.token).subject == key["id"]
    await bus.ask("key_revoke", ops.RevokeKey(key["id"]), dict)
    assert await refused(bus, "ticket_redeem", ops.RedeemTicket(late, sid)) == "token_revoked"


async def test_an_expired_ticket_is_refused(fresh_nats: NatsServer) -> None:
    async with replica(fresh_nats.url, ticket_life=1) as _, connected(fresh_nats.url) as bus:
        sid = await new_session(bus)
        made = await bus.ask("ticket_create", ops.CreateTicket(TENANT, "session", sid), ops.TicketCreated)
        tickets = Bucket(bus, "tickets")
        entry = await tickets.get(digest(made.ticket))
        assert entry is not None

        async def grown_old() -> bool:
            return await tickets.age(entry) > 1

        await until(grown_old, "it is older than it may be")
        assert await refused(bus, "ticket_redeem", ops.RedeemTicket(made.ticket, sid)) == "token_expired"


@pytest.mark.parametrize(("made", "shown"), [(0, 540), (540, 0), (-240, 300)])
async def test_a_ticket_lives_as_long_as_it_should_whoevers_clocks_say_what(
    okome: Okome, bus: Bus, made: float, shown: float
) -> None:
    """The replica that it is shown to may be minutes ahead of the one that made it, or behind."""
    sid = await new_session(bus)
    with clock_off(made):
        ticket = await bus.ask("ticket_create", ops.CreateTicket(TENANT, "session", sid), ops.TicketCreated)
        login = await bus.ask("ticket_create", ops.CreateTicket("default", "login"), ops.TicketCreated)
    with clock_off(shown):
        assert (await bus.ask("ticket_redeem", ops.RedeemTicket(ticket.ticket, sid), ops.SessionToken)).session_id
        assert (await login_of(bus, ops.Login(ticket=login.ticket)))[0] == "default"


async def test_a_login_ticket_opens_the_page_once(okome: Okome, bus: Bus) -> None:
    made = await bus.ask("ticket_create", ops.CreateTicket("default", "login"), ops.TicketCreated)
    assert await login_of(bus, ops.Login(ticket=made.ticket)) == ("default", "login")
    assert await refused(bus, "login", ops.Login(ticket=made.ticket)) == "unauthenticated"


@pytest.mark.parametrize(
    ("question", "code"),
    [
        (ops.CreateTicket(TENANT, "session", "00nosuchsession"), "unknown_session"),
        (ops.CreateTicket(TENANT, "session", "00nosuchsession", "admin"), "malformed"),
        (ops.CreateTicket(TENANT, "door"), "malformed"),
    ],
)
async def test_a_ticket_for_nothing_is_refused(okome: Okome, bus: Bus, question: ops.CreateTicket, code: str) -> None:
    assert await refused(bus, "ticket_create", question) == code


async def test_no_operation_answers_with_anything_but_json(okome: Okome, bus: Bus) -> None:
    for operation in (
        "login",
        "key_create",
        "key_revoke",
        "ticket_create",
        "ticket_redeem",
        "route",
        "generation_ended",
        "session_mend",
    ):
        msg = await bus.request(f"okome.v1.{operation}", b"\x00 not json")
        assert json.loads(msg.data)["error"]["code"] == "malformed"
    assert (await bus.ask("ping", {}, dict))["id"] == okome.id

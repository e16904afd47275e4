"""Logins and tickets: how a person or a page gets a token. A ticket is used once, by compare-and-set.

It may be made by one replica and shown to another one: how old it is is told by the clock of the server that keeps it.
"""

from __future__ import annotations

import structlog

from broker.bus import clock
from broker.bus.credentials import digest, new_ticket
from broker.bus.errors import BucketConflict, Refusal
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.operations import (
    CreateTicket,
    LoggedIn,
    Login,
    OfSession,
    RedeemTicket,
    SessionToken,
    TicketCreated,
)
from broker.bus.records import Ticket, decode, encode
from control.keyring import DEFAULT_TENANT, Keyring, is_tenant
from control.sessions import Sessions
from control.settings import ControlSettings

LOGIN = "login"  # a ticket's kind, and the subject of whoever has no API key
SESSION = "session"
SCOPES = ("read", "write")

log = structlog.get_logger("control")


class Logins:
    """Login tokens and tickets."""

    def __init__(self, bus: Bus, settings: ControlSettings, keyring: Keyring, sessions: Sessions) -> None:
        self._settings = settings
        self._keyring = keyring
        self._sessions = sessions
        self._tickets = Bucket(bus, "tickets")

    async def login(self, question: Login) -> LoggedIn:
        """By API key, by login ticket, or because a node saw that it is this machine's own user. Raises Refusal."""
        if question.api_key:
            record = await self._keyring.find(question.api_key)
            tenant, subject = record.tenant, record.id
        elif question.ticket:
            ticket = await self._spend(question.ticket, LOGIN, "")
            tenant, subject = ticket.tenant, LOGIN
        elif question.loopback:
            tenant, subject = DEFAULT_TENANT, LOGIN
        else:
            raise Refusal("unauthenticated", "an API key or a ticket is needed")
        token, expires_at = self._keyring.signing.login(tenant, subject, self._settings.token_life)
        log.info("login.accepted", tenant=tenant, subject=subject)
        return LoggedIn(token, tenant, expires_at)

    async def create_ticket(self, question: CreateTicket) -> TicketCreated:
        if question.scope not in SCOPES:
            raise Refusal("malformed", "scope is read or write", param="scope")
        match question.kind:
            case "session":
                await self._sessions.find(question.tenant, question.sid)
            case "login":
                if not is_tenant(question.tenant):
                    raise Refusal("malformed", "no such tenant", param="tenant")
            case _:
                raise Refusal("malformed", "kind is session or login", param="kind")
        ticket = new_ticket()
        expires_at = int(clock.now() + self._life(question.kind))
        record = Ticket(
            question.kind, question.tenant, question.sid, question.scope, expires_at, question.subject, question.until
        )
        await self._tickets.put(digest(ticket), encode(record))
        return TicketCreated(ticket, expires_at)

    async def redeem(self, question: RedeemTicket) -> SessionToken:
        """A session token for a ticket: once. It counts as long as the API key that the ticket was asked with."""
        ticket = await self._spend(question.ticket, SESSION, question.sid)
        subject = ticket.subject or LOGIN
        if await self._keyring.revoked(subject):  # a token made now would be younger than the revocation, and count
            raise Refusal("token_revoked", "the API key behind this ticket has been revoked")
        return await self._sessions.token(OfSession(ticket.tenant, ticket.sid, subject), ticket.scope, ticket.until)

    async def _spend(self, ticket: str, kind: str, sid: str) -> Ticket:
        """A ticket shown at the wrong door is refused and not spent."""
        key = digest(ticket)
        entry = await self._tickets.get(key)
        if entry is None:
            raise Refusal("unauthenticated", "this ticket is not known, or was used")
        record = decode(entry.value, Ticket)
        if record.kind != kind or record.sid != sid:
            raise Refusal("forbidden", "this ticket is for something else")
        if await self._tickets.age(entry) >= self._life(kind):
            raise Refusal("token_expired", "this ticket has expired")
        try:
            await self._tickets.delete(key, entry.revision)
        except BucketConflict:
            raise Refusal("unauthenticated", "this ticket was used at the same moment") from None
        return record

    def _life(self, kind: str) -> float:
        return self._settings.ticket_life if kind == SESSION else self._settings.login_ticket_life

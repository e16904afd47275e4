"""OKOME's operations on the bus: what is asked, decoded, carried out, measured and encoded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog

from broker.bus import operations as ops
from broker.bus.errors import BusUnavailable, ChainBroken, FrameMalformed, Refusal, StoreRejected
from broker.bus.log import STREAM_FULL
from broker.bus.nats import Handler
from broker.bus.subjects import is_session_id
from broker.bus.version import VERSION
from control import metrics
from control.deletions import Deletions
from control.endings import Endings
from control.generations import Generations
from control.keyring import Keyring
from control.logins import Logins
from control.sessions import Sessions

NAME = "okome"
DESCRIPTION = "OKOME: sessions, tokens, generations, routing"

log = structlog.get_logger("control")

Question = TypeVar("Question", bound=msgspec.Struct)


class Nothing(msgspec.Struct, frozen=True):
    """A question that says nothing."""


def endpoints(
    id: str,
    keyring: Keyring,
    sessions: Sessions,
    deletions: Deletions,
    logins: Logins,
    generations: Generations,
    endings: Endings,
) -> dict[str, Handler]:
    """Every operation by name."""

    async def delete(question: ops.OfSession) -> dict[str, Any]:
        await deletions.delete(question)
        return {}

    async def ended(question: ops.GenerationEnded) -> dict[str, Any]:
        return {"closed": await endings.close(question.sid, question.gid)}

    async def mend(question: ops.MendSession) -> dict[str, Any]:
        if is_session_id(question.sid):
            await endings.last_frame(question.sid)
        return {}

    async def revoke(question: ops.RevokeKey) -> dict[str, Any]:
        await keyring.revoke(question.id)
        return {}

    async def keys(question: Nothing) -> dict[str, Any]:
        return await keyring.list()

    async def ping(question: Nothing) -> dict[str, Any]:
        return {"id": id, "version": VERSION}

    return {
        "login": _handler("login", ops.Login, logins.login),
        "session_create": _handler("session_create", ops.CreateSession, sessions.create),
        "session_token": _handler("session_token", ops.OfSession, sessions.token),
        "session_patch": _handler("session_patch", ops.PatchSession, sessions.patch),
        "session_delete": _handler("session_delete", ops.OfSession, delete),
        "session_mend": _handler("session_mend", ops.MendSession, mend),
        "ticket_create": _handler("ticket_create", ops.CreateTicket, logins.create_ticket),
        "ticket_redeem": _handler("ticket_redeem", ops.RedeemTicket, logins.redeem),
        "generation_create": _handler("generation_create", ops.CreateGeneration, generations.create),
        "generation_ended": _handler("generation_ended", ops.GenerationEnded, ended),
        "key_create": _handler("key_create", ops.CreateKey, keyring.create),
        "key_list": _handler("key_list", Nothing, keys),
        "key_revoke": _handler("key_revoke", ops.RevokeKey, revoke),
        "route": _handler("route", ops.Explain, generations.explain),
        "ping": _handler("ping", Nothing, ping),
    }


def _handler(
    operation: str, kind: type[Question], carry_out: Callable[[Question], Awaitable[msgspec.Struct | dict[str, Any]]]
) -> Handler:
    async def handle(payload: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcome = "ok"
        try:
            return msgspec.json.encode(await carry_out(msgspec.json.decode(payload or b"{}", type=kind)))
        except Refusal as refusal:
            outcome = refusal.code
            raise
        except msgspec.MsgspecError:
            outcome = "malformed"
            raise
        except BusUnavailable as error:
            outcome = "unavailable"
            raise Refusal("unavailable", "the bus does not answer", retry_after=1) from error
        except (FrameMalformed, ChainBroken) as error:
            outcome = "unavailable"
            log.error("control.log_unreadable", operation=operation, error=str(error))
            raise Refusal("unavailable", "the session's log cannot be read", retry_after=5) from error
        except StoreRejected as error:
            if error.err_code != STREAM_FULL:
                outcome = "internal"
                raise
            outcome = "overloaded"
            raise Refusal("overloaded", "there is no room to store this", retry_after=5) from error
        finally:
            metrics.operations.labels(operation, outcome).observe(loop.time() - began)

    return handle

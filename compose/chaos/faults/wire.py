"""Faults of single messages between a role and NATS: an acknowledgement, a frame, an answer that does not arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from compose.chaos.fault import DidNotHappen, Fault
from compose.chaos.nats_wire import Loss, Message, NatsTap

SIGN_TIMEOUT = 20.0
NOT_FOUND = b"NATS/1.0 404 Message Not Found\r\n\r\n"


def lose(
    tap: NatsTap,
    name: str,
    wanted: Callable[[Message], bool],
    what: str,
    *,
    wrong: bool,
    instead: bytes | None = None,
) -> Fault:
    """The next `wanted` message does not reach the role behind `name`, or `instead` comes. `wrong`: none is lost."""
    rules: list[Loss] = []

    async def strike() -> None:
        rules.append(tap.lose(lambda message: not wrong and wanted(message), instead=instead))

    async def lost() -> str:
        (rule,) = rules
        try:
            async with asyncio.timeout(2.0 if wrong else SIGN_TIMEOUT):
                await rule.happened.wait()
        except TimeoutError:
            raise DidNotHappen(f"{what} for {name} did not pass within its time") from None
        message = rule.lost[0]
        return f"{what} for {name} was lost: {len(message.payload)} bytes on {message.subject}"

    async def undo() -> None:
        for rule in rules:
            tap.forget(rule)

    return Fault(f"{what} for {name}", strike, lost, undo)


def is_ack(message: Message) -> bool:
    """The answer to a publish into a session's log."""
    return message.payload.startswith(b'{"stream":"TOK_') and b'"seq":' in message.payload


def is_terminal(message: Message) -> bool:
    """The last frame of an answer, on its way to a tail."""
    return message.reply.startswith("$JS.ACK.TOK_") and message.payload.startswith(b"okome/1 done ")


def is_token(message: Message) -> bool:
    """A frame of tokens on its way to a tail."""
    return message.reply.startswith("$JS.ACK.TOK_") and message.payload.startswith(b"okome/1 token ")


def is_page(message: Message) -> bool:
    """A frame that was asked for by a direct get."""
    return b"Nats-Stream: TOK_" in message.headers

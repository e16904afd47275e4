"""Cancels, as a fault of the answer that they end: from whichever device, over whichever way. Proven by its end."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from broker.bus.clock import now_ms
from broker.bus.frames import CANCELLED, TERMINAL, TOKEN
from compose.chaos.answers import answered
from compose.chaos.checker import Asked
from compose.chaos.crowd import Watched
from compose.chaos.fault import DidNotHappen, Fault
from compose.chaos.http import call
from compose.chaos.viewer import Seen

SIGN_TIMEOUT = 20.0
"""Seconds in which a cancelled answer must have ended. What is waiting in the queue is ended by OKOME's sweeper."""
WRONG_TIMEOUT = 3.0
"""The same in a control run, where it will not end."""
CALL_TIMEOUT = 10.0
PUT_OFF = ("unavailable", "overloaded")
"""What is said to those who are to ask again later."""

Told = tuple[bool, str]
"""Whether a cancel was accepted, and the generation's status as the answer has it, or why it was not."""


class Device(Protocol):
    """Cancels a generation of a session. Raises OSError and EOFError as a connection does."""

    async def __call__(self, sid: str, gid: str, saying: Callable[[], None] = lambda: None) -> Told:
        """`saying` is called when the cancel is about to be sent: one is said over a connection that stands."""


def over_http(door: Callable[[], str], token: str) -> Device:
    """`token`: the session's, or its tenant's key."""

    async def cancel(sid: str, gid: str, saying: Callable[[], None] = lambda: None) -> Told:
        saying()
        answer = await call(door(), "POST", f"/v1/sessions/{sid}/generations/{gid}/cancel", token, {})
        told = answer.json()
        return answer.status == 202, str(told.get("status") or told.get("error"))

    return cancel


def over_socket(door: Callable[[], str], token: str) -> Device:
    """A WebSocket of its own, which says nothing else."""

    async def cancel(sid: str, gid: str, saying: Callable[[], None] = lambda: None) -> Told:
        url = f"{door().replace('http', 'ws', 1)}/v1/sessions/{sid}/ws?after=now"
        question = {"request_id": secrets.token_hex(8), "generation_id": gid}
        async with (
            asyncio.timeout(CALL_TIMEOUT),
            connect(
                url,
                additional_headers={"Authorization": f"Bearer {token}"},
                subprotocols=["okome.v1"],  # type: ignore[list-item]
                compression=None,
                close_timeout=0.1,
                proxy=None,
            ) as socket,
        ):
            saying()
            await socket.send(json.dumps({"event": "cancel", "data": question}))
            async for message in socket:
                said = json.loads(message)
                if said["event"] in ("accepted", "rejected"):
                    return said["event"] == "accepted", str(said["data"].get("status") or said["data"].get("error"))
        raise ConnectionResetError("no answer to a cancel")

    async def as_connections_do(sid: str, gid: str, saying: Callable[[], None] = lambda: None) -> Told:
        try:
            return await cancel(sid, gid, saying)
        except WebSocketException as error:
            raise ConnectionResetError(f"no answer to a cancel: {error!r}") from error

    return as_connections_do


def insisting(device: Device) -> Device:
    """It cancels until it is answered, and not put off: what is cancelled twice is cancelled. Raises Unanswered."""

    async def cancel(sid: str, gid: str, saying: Callable[[], None] = lambda: None) -> Told:
        async def once() -> Told:
            accepted, said = await device(sid, gid, saying)
            if not accepted and any(code in said for code in PUT_OFF):
                raise ConnectionRefusedError(said)
            return accepted, said

        return await answered(once)

    return cancel


@dataclass
class Cancelled:
    """What a cancel led to. Times are loop times but `stopped_after`, seconds by the machine's clock."""

    sent_at: float = 0.0
    seen_after: float = 0.0
    """From the moment it was sent to the moment the session's first viewer saw the end."""
    stopped_after: float = 0.0
    """To the moment the worker had stopped, as it says in the terminal frame; 0 where somebody else wrote that."""
    tokens_after: int = 0
    """That the viewer saw after the cancel was sent."""


def cancel(session: Watched, asked: Asked, device: Device, *, wrong: bool) -> tuple[Fault, Cancelled]:
    """Cancel an answer that has a viewer; its end is expected to be `cancelled` once that is proven.

    `wrong`: another generation's id is told, which no session has.
    """
    led = Cancelled()
    wall = 0
    viewer = session.viewers[0]
    loop = asyncio.get_running_loop()

    def saying() -> None:
        nonlocal wall
        if not led.sent_at:  # the first one may have been heard, though nobody answered it
            led.sent_at, wall = loop.time(), now_ms()

    async def strike() -> None:
        await device(session.sid, "0" * len(asked.gid) if wrong else asked.gid, saying)

    async def ended() -> str:
        timeout = WRONG_TIMEOUT if wrong else SIGN_TIMEOUT
        try:
            async with asyncio.timeout(timeout):
                await viewer.changed(lambda one: any(_ends(event, asked) for event in one.events))
        except TimeoutError:
            raise DidNotHappen(f"{asked.gid} did not end within {timeout:g} s") from None
        end = next(event for event in viewer.events if _ends(event, asked))
        if end.name != CANCELLED:
            raise DidNotHappen(f"{asked.gid} ended with {end.name}")
        asked.ends = (CANCELLED,)
        led.seen_after = end.at - led.sent_at
        led.stopped_after = max(0, json.loads(end.data)["t"] - wall) / 1000
        led.tokens_after = sum(event.name == TOKEN and event.at > led.sent_at for event in viewer.events)
        return f"cancelled {led.seen_after * 1000:.0f} ms later, {led.tokens_after} token events after it was asked"

    return Fault(f"answer {asked.gid}", strike, ended), led


def _ends(event: Seen, asked: Asked) -> bool:
    return event.name in TERMINAL and json.loads(event.data)["generation_id"] == asked.gid

"""The public HTTP API as the commands use it: requests that fail in one way, a stream that survives its connections."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import ssl
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple

import httpx
from httpx_sse import SSEError, aconnect_sse

from broker.bus.frames import TERMINAL
from compose.cli.outcome import CommandFailed

PERMANENT = frozenset({400, 401, 403, 404, 405, 409, 413, 422})
PATIENCE = 30.0
"""Seconds after its connection was lost at which a stream that does not come back is given up."""
REFUSED_PAUSE = 1.0
"""Seconds before somebody who refuses connections is asked again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0


class Event(NamedTuple):
    """One event of a session's stream; `id` is the cursor after it, empty for those that have none."""

    name: str
    id: str
    data: dict[str, Any]


class Away(CommandFailed):
    """Nobody serves this now; asked again after `pause` seconds, somebody may."""

    def __init__(self, message: str, pause: float) -> None:
        super().__init__(message)
        self.pause = pause


async def ask(client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request, one JSON answer; a POST may be repeated on its way without doing it twice. Raises CommandFailed."""
    return await _ask(client, method, path, body, _once(method))


async def ask_again(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    patience: float,
    waiting: Callable[[Away], None],
) -> dict[str, Any]:
    """The same; who is away is asked again for `patience` seconds, and `waiting` is told of it each time. Whatever the
    answer to an earlier try was, it is done once. Raises CommandFailed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    headers = _once(method)
    while True:
        try:
            return await _ask(client, method, path, body, headers)
        except Away as error:
            if loop.time() + error.pause > deadline:
                raise
            waiting(error)
            await asyncio.sleep(error.pause)


def _once(method: str) -> dict[str, str]:
    return {"idempotency-key": secrets.token_hex(16)} if method == "POST" else {}


async def _ask(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]
) -> dict[str, Any]:
    try:
        answer = await client.request(method, path, json=body, headers=headers)
    except httpx.HTTPError as error:
        message = f"{client.base_url} does not answer: {error or type(error).__name__}"
        raise Away(message, REFUSED_PAUSE) if _passing(error) else CommandFailed(message) from error
    if answer.is_error:
        message = refusal(answer.status_code, answer.content)
        if answer.status_code == 401:
            message += "; `okome doctor` says what helps"
        after = answer.headers.get("retry-after", "")
        raise Away(message, max(float(after), FIRST_PAUSE)) if after.isdecimal() else CommandFailed(message)
    try:
        told = answer.json() if answer.content else {}
    except ValueError as error:
        raise CommandFailed(f"{client.base_url} is not OKOME: it answers {path} with something else") from error
    return told if isinstance(told, dict) else {}


def _passing(error: httpx.HTTPError) -> bool:
    """A connection that was refused or broke off, as while its other end is started anew; not a wrong certificate."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return False
        cause = cause.__cause__ or cause.__context__
    return isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)


def refusal(status: int, body: bytes) -> str:
    """An error answer of the API as a sentence."""
    try:
        error = json.loads(body)["error"]
        field = f" [{error['param']}]" if error.get("param") else ""
        return f"{error['message']} ({error['code']}){field}"
    except (ValueError, KeyError, TypeError):
        return f"the server answered {status}"


async def follow(
    client: httpx.AsyncClient, sid: str, *, after: str = "", until: str = ""
) -> AsyncGenerator[Event, None]:
    """The session's events from the cursor on, each once, over as many connections as it takes.

    `until="done"` ends after the first terminal that follows the history. Raises CommandFailed when it is refused, or
    when it was lost and nothing came for `PATIENCE` seconds.
    """
    loop = asyncio.get_running_loop()
    cursor, lost, pause = after, loop.time(), FIRST_PAUSE
    caught_up = False
    why = "no answer"
    while loop.time() - lost < PATIENCE:
        params = {name: value for name, value in (("after", cursor), ("until", until)) if value}
        wait: float | None = None
        served = False
        try:
            async with aconnect_sse(client, "GET", f"/v1/sessions/{sid}/events", params=params) as source:
                status = source.response.status_code
                if status == 204:
                    return
                if status in PERMANENT:
                    raise CommandFailed(refusal(status, await source.response.aread()))
                source.response.raise_for_status()
                async for sse in source.aiter_sse():
                    # An event without an id is given the last one by the parser, as the standard wants it.
                    own = sse.id if sse.id != cursor else ""
                    event = Event(sse.event, own, json.loads(sse.data) if sse.data else {})
                    if event.name == "closed":
                        wait = event.data.get("retry_after_ms", 1000) / 1000
                        why = str(event.data.get("message", "the server closed the stream"))
                        yield event
                        break
                    served, pause = True, FIRST_PAUSE
                    cursor = event.id or cursor
                    yield event
                    if event.name == "reconnect":
                        wait = event.data.get("after_ms", 0) / 1000
                        break
                    if event.name in ("caught_up", "reset"):  # history ends; or begins anew, and ends anew
                        caught_up = event.name == "caught_up"
                    if until and caught_up and event.name in TERMINAL:
                        return
        except (httpx.HTTPError, SSEError, ValueError) as error:
            why = str(error) or type(error).__name__
        if served:
            lost = loop.time()  # heartbeats are no events: it may have been quiet for long, and well
        if wait is None:
            # Full jitter: everybody who hung on one node does not come back in the same instant.
            wait, pause = random.uniform(0, pause), min(pause * 2, LONGEST_PAUSE)
        await asyncio.sleep(wait)
    raise CommandFailed(f"the stream of {sid} broke off and did not come back: {why}")

"""A crowd: sessions with a scripted answer each, and viewers who watch them, some over SSE, some over WebSocket."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import msgspec

from broker.bus.script import Script
from compose.chaos.checker import Asked
from compose.chaos.http import Answer, call
from compose.chaos.viewer import Transport, Viewer

START_TIMEOUT = 30.0
RETRY_PAUSE = 0.05
OTHERS_TIMEOUT = 60.0


class NotAdmitted(Exception):
    """The system did not take new work in time; it was asked as a patient client asks."""


@dataclass
class Watched:
    """One session: what was asked in it, and who watches."""

    sid: str
    token: str
    asked: list[Asked]
    viewers: list[Viewer]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Crowd:
    """Everybody who watches; `async with` ends their connections. `door` gives an ingress's URL at every connect."""

    def __init__(self, door: Callable[[], str], api_key: str, rng: random.Random) -> None:
        self.watched: list[Watched] = []
        self._door = door
        self._key = api_key
        self._rng = rng

    async def __aenter__(self) -> Crowd:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        tasks = [task for one in self.watched for task in one.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- asking ------------------------------------------------------------------------------------------------------

    async def gather(
        self, scripts: Sequence[Script], *, viewers: int = 1, transport: Transport | None = None, patience: float = 25.0
    ) -> list[Watched]:
        """A session, an answer and viewers for each script; `transport` None: every third viewer is a WebSocket."""
        return list(
            await asyncio.gather(
                *(self._begin(number, script, viewers, transport, patience) for number, script in enumerate(scripts))
            )
        )

    async def _begin(
        self, number: int, script: Script, viewers: int, transport: Transport | None, patience: float
    ) -> Watched:
        session = await self.open()
        for index in range(viewers):
            chosen = transport or (Transport.WS if (number + index) % 3 == 2 else Transport.SSE)
            self.watch(session, chosen, patience=patience)
        await self.ask(session, script)
        return session

    async def open(self, **fields: Any) -> Watched:
        """A new session. Raises NotAdmitted."""
        answer = await self._insist("POST", "/v1/sessions", self._key, {"model": "scripted", **fields})
        told = answer.json()
        session = Watched(told["session_id"], told["token"], [], [])
        self.watched.append(session)
        return session

    def watch(
        self,
        session: Watched,
        transport: Transport = Transport.SSE,
        *,
        patience: float = 25.0,
        door: Callable[[], str] | None = None,
        receive_buffer: int = 0,
        after: str = "0",
        terminals: int = 1,
    ) -> Viewer:
        """One more viewer of a session, from `after` to so many terminals; `door`: not everybody's."""
        viewer = Viewer(
            door or self._door,
            session.sid,
            session.token,
            transport=transport,
            after=after,
            patience=patience,
            receive_buffer=receive_buffer,
        )
        session.viewers.append(viewer)
        session.tasks.append(asyncio.create_task(viewer.watch(terminals), name=f"viewer-{session.sid}"))
        return viewer

    async def ask(self, session: Watched, script: Script | None, **fields: Any) -> Asked:
        """A scripted answer in the session, or with None what `fields` ask of a real model. Raises NotAdmitted."""
        scripted = {} if script is None else {"prompt": msgspec.json.encode(script).decode(), "model": "scripted"}
        body = {**scripted, **fields}
        answer = await self._insist("POST", f"/v1/sessions/{session.sid}/generations", session.token, body)
        asked = Asked(answer.json()["generation_id"], script)
        session.asked.append(asked)
        return asked

    async def cancel(self, session: Watched, asked: Asked) -> Answer:
        path = f"/v1/sessions/{session.sid}/generations/{asked.gid}/cancel"
        return await self._insist("POST", path, session.token, {})

    async def _insist(self, method: str, path: str, token: str, body: Any) -> Answer:
        """Under one Idempotency-Key until it is answered, waiting as told; anything but 2xx and 503 is final."""
        headers = {"idempotency-key": secrets.token_hex(16)}
        why = ""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while True:
                    try:
                        answer = await call(self._door(), method, path, token, body, headers)
                    except (OSError, EOFError) as error:
                        why = repr(error)
                        await asyncio.sleep(RETRY_PAUSE)
                        continue
                    if answer.status < 300:
                        return answer
                    why = f"{answer.status} {answer.body[:200].decode(errors='replace')}"
                    if answer.status != 503:
                        raise NotAdmitted(f"{method} {path}: {why}")
                    await asyncio.sleep(float(answer.headers.get("retry-after", 1)) * self._rng.uniform(0.1, 0.3))
        except TimeoutError:
            raise NotAdmitted(f"{method} {path}: {why}") from None

    # -- who is who --------------------------------------------------------------------------------------------------

    @property
    def viewers(self) -> list[Viewer]:
        return [viewer for one in self.watched for viewer in one.viewers]

    def running(self) -> list[Viewer]:
        """Viewers whose answer has begun and not ended."""
        return [viewer for viewer in self.viewers if viewer.worker and not viewer.ended]

    def on(self, process: str) -> list[Viewer]:
        """Running viewers whose tokens pass through a node, ingress or worker."""
        return [one for one in self.running() if process in (one.node, one.ingress, one.worker)]

    async def underway(self, tokens: int = 3) -> None:
        """Wait until every viewer has seen so many token events, or the end. The caller's deadline."""
        await asyncio.gather(*(viewer.seen(tokens) for viewer in self.viewers))

    async def over_but(self, one: Viewer) -> None:
        """Wait until everybody's answer has ended but this one's. The caller's deadline, or the round's."""
        tasks = [
            task
            for watched in self.watched
            for viewer, task in zip(watched.viewers, watched.tasks, strict=True)
            if viewer is not one
        ]
        await asyncio.wait(tasks, timeout=OTHERS_TIMEOUT)

    async def over(self, timeout: float) -> list[Viewer]:
        """Wait until everybody's answer has ended; who has not seen that when the time is over, or gave up before."""
        tasks = self._tasks()
        if tasks:
            await asyncio.wait(tasks.values(), timeout=timeout)
        return [viewer for viewer, task in tasks.items() if not task.done() or self.failure(viewer) is not None]

    def failure(self, viewer: Viewer) -> BaseException | None:
        """What a viewer gave up with; None where it has not."""
        task = self._tasks()[viewer]
        return task.exception() if task.done() and not task.cancelled() else None

    def _tasks(self) -> dict[Viewer, asyncio.Task[None]]:
        return {viewer: task for one in self.watched for viewer, task in zip(one.viewers, one.tasks, strict=True)}

"""Churn: what a day brings, in miniature. People come, ask, watch, leave in every way there is, and are forgotten.

One life is one session from its making to its end; many live at once. Lives differ in what their people do, drawn by
chance from the churn's own generator. Nothing of a life is kept here but what it counted as.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

from broker.bus.script import Script
from compose.chaos.crowd import Crowd, NotAdmitted, Watched
from compose.chaos.faults.abort import Aborters
from compose.chaos.http import call
from compose.chaos.system import System
from compose.chaos.viewer import Transport, Viewer, ViewerRefused

LIFE_TIMEOUT = 40.0
ANSWER = 1.5  # seconds, at most, of most answers ...
LONG_ANSWER = 6.0  # ... and of one in ten
KEPT = 0.02  # of all sessions so many are not deleted when their people have gone
ABORTS = 8
LEFT_FOR = 0.4  # seconds, at most, that somebody stays away
WATCH_FOR = 0.5  # seconds, at most, until something happens to whoever watches

_GONE = (NotAdmitted, ViewerRefused, OSError, EOFError)
"""How a life fails that a fault has struck; TimeoutError is an OSError."""

Life = Callable[[Crowd, random.Random], Awaitable[None]]


class Churn:
    """`did` counts lives by kind, and what happened in them."""

    def __init__(self, system: System, seed: int) -> None:
        self.did: Counter[str] = Counter()
        self._system = system
        self._seed = seed
        self._numbers = itertools.count()
        self._lives: tuple[tuple[Life, int], ...] = (
            (self._stay, 6),
            (self._leave_and_return, 3),
            (self._kicked, 3),
            (self._cancel, 3),
            (self._vanish, 2),
            (self._operate, 2),
            (self._abort, 1),
        )

    async def wave(self, seconds: float, abreast: int) -> None:
        """`abreast` lives at a time, a new one for each that ended, for so long; returns when the last one ended."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds

        async def one_after_the_other(delay: float) -> None:
            await asyncio.sleep(delay)  # not all at the same moment
            while loop.time() < until:
                await self._life(next(self._numbers))

        async with asyncio.TaskGroup() as tasks:
            for place in range(abreast):
                tasks.create_task(one_after_the_other(place / abreast))

    async def _life(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/life/{number}")
        (live,) = rng.choices([life for life, _ in self._lives], [weight for _, weight in self._lives])
        self.did["sessions"] += 1
        self.did[live.__name__.strip("_").replace("_", " ")] += 1
        try:
            async with asyncio.timeout(LIFE_TIMEOUT), self._crowd(rng) as crowd:
                await live(crowd, rng)
                for session in crowd.watched:
                    if rng.random() >= KEPT:
                        await self._delete(session)
                self._count(crowd)
        except _GONE:
            self.did["given up"] += 1

    def _crowd(self, rng: random.Random) -> Crowd:
        return Crowd(lambda: self._system.url, self._system.api_key, rng)

    def _count(self, crowd: Crowd) -> None:
        self.did["generations"] += sum(len(one.asked) for one in crowd.watched)
        self.did["viewers"] += len(crowd.viewers)
        self.did["connections"] += sum(viewer.connections for viewer in crowd.viewers)
        self.did["events"] += sum(len(viewer.events) for viewer in crowd.viewers)

    # -- lives -------------------------------------------------------------------------------------------------------

    async def _stay(self, crowd: Crowd, rng: random.Random) -> None:
        """Up to three turns, up to three viewers, who come when they like and stay to the end."""
        session = await crowd.open()
        turns = rng.choice((1, 1, 2, 3))
        self._join(crowd, session, rng, "0", turns)
        for turn in range(turns):
            await crowd.ask(session, _script(rng))
            if rng.random() < 0.4:
                self._join(crowd, session, rng, rng.choice(("0", "now", "")), 1)
            await session.viewers[0].changed(lambda viewer, turn=turn: viewer.ended > turn)  # type: ignore[misc]

    async def _leave_and_return(self, crowd: Crowd, rng: random.Random) -> None:
        """A viewer closes its connection in the middle; another one comes with its cursor, perhaps when it is over."""
        session = await crowd.open()
        first = self._join(crowd, session, rng, "0", 1)
        await crowd.ask(session, _script(rng))
        await first.changed(lambda viewer: bool(viewer.cursor))
        await asyncio.sleep(rng.uniform(0, WATCH_FOR))
        await self._close(session, first)
        await asyncio.sleep(rng.choice((0, 1)) * rng.uniform(0, LEFT_FOR))
        if not first.ended:
            second = self._join(crowd, session, rng, first.cursor, 1)
            await second.changed(lambda viewer: viewer.ended > 0)

    async def _kicked(self, crowd: Crowd, rng: random.Random) -> None:
        """Connections break by RST, again and again; their viewers come back by themselves, over either transport."""
        session = await crowd.open()
        viewers = [self._join(crowd, session, rng, "0", 1) for _ in range(rng.choice((1, 2)))]
        await crowd.ask(session, _script(rng))
        for _ in range(rng.choice((1, 2, 3))):
            await asyncio.sleep(rng.uniform(0, WATCH_FOR))
            for viewer in viewers:
                if rng.random() < 0.3:
                    viewer.transport = viewer.transport.other
                self.did["kicks"] += viewer.kick()
        await asyncio.gather(*(viewer.changed(lambda one: one.ended > 0) for viewer in viewers))

    async def _cancel(self, crowd: Crowd, rng: random.Random) -> None:
        """Before the first token, in the middle, or when it is over."""
        session = await crowd.open()
        viewer = self._join(crowd, session, rng, "0", 1)
        asked = await crowd.ask(session, _script(rng))
        await asyncio.sleep(rng.choice((0, 1, 3)) * rng.uniform(0, WATCH_FOR))
        await crowd.cancel(session, asked)
        self.did["cancels"] += 1
        await viewer.changed(lambda one: one.ended > 0)

    async def _vanish(self, crowd: Crowd, rng: random.Random) -> None:
        """Somebody asks and goes, or never watched; the answer is finished for nobody, or cancelled, or deleted."""
        session = await crowd.open(on_disconnect=rng.choice(("finish", "cancel")))
        viewer = self._join(crowd, session, rng, "0", 1) if rng.random() < 0.7 else None
        await crowd.ask(session, _script(rng))
        await asyncio.sleep(rng.uniform(0, WATCH_FOR))
        if viewer is not None and rng.random() < 0.8:
            await self._close(session, viewer)

    async def _operate(self, crowd: Crowd, rng: random.Random) -> None:
        """Every operation of OKOME that the API has, and credentials that are refused."""
        session = await crowd.open(title="churn", metadata={"life": "operate"})
        key, path = self._system.api_key, f"/v1/sessions/{session.sid}"
        script = _prompt(_script(rng))
        ticket = (await self._call("POST", f"{path}/tickets", session.token, {"scope": "read"})).get("ticket", "none")
        for method, where, token, body in (
            ("POST", f"{path}/token", session.token, {}),
            ("PATCH", path, session.token, {"title": "churned"}),
            ("POST", f"{path}/generations?wait=20", session.token, {"prompt": script}),
            ("POST", f"{path}/generations", session.token, {"prompt": "no script"}),
            ("GET", f"{path}/events?after=0&until=done&ticket={ticket}", "", None),
            ("GET", f"{path}/events?after=0&until=done&ticket={ticket}", "", None),  # it is spent
            ("GET", path, session.token, None),
            ("GET", f"{path}/messages", session.token, None),
            ("GET", "/v1/sessions?limit=5", key, None),
            ("GET", "/v1/models", key, None),
            ("GET", path, "x.y.z", None),
            ("POST", "/v1/login", "", {"api_key": key}),
            ("POST", "/v1/login", "", {"api_key": "ok_wrong"}),
        ):
            await self._call(method, where, token, body)

    async def _abort(self, crowd: Crowd, rng: random.Random) -> None:
        """Clients that break off at any byte of any request."""
        session = await crowd.open()
        clients = Aborters(lambda: self._system.url, self._system.api_key, [session], rng)
        await clients.abort(ABORTS)
        self.did["aborts"] += ABORTS

    # -- what they do ------------------------------------------------------------------------------------------------

    def _join(self, crowd: Crowd, session: Watched, rng: random.Random, after: str, terminals: int) -> Viewer:
        transport = rng.choice((Transport.SSE, Transport.SSE, Transport.WS))
        return crowd.watch(session, transport, after=after, terminals=terminals)

    async def _close(self, session: Watched, viewer: Viewer) -> None:
        """It goes for good, as a page does that is closed."""
        task = session.tasks[session.viewers.index(viewer)]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _delete(self, session: Watched) -> None:
        """Whoever watches then is told, and refused when it comes back."""
        await self._call("DELETE", f"/v1/sessions/{session.sid}", session.token)
        self.did["deletes"] += 1

    async def _call(self, method: str, path: str, token: str, body: object = None) -> dict[str, object]:
        """One request, whatever the answer; its JSON object, if it is one."""
        answer = await call(self._system.url, method, path, token, body)
        self.did["operations"] += 1
        if "json" not in answer.headers.get("content-type", ""):
            return {}
        told: object = answer.json()
        return told if isinstance(told, dict) else {}


def _script(rng: random.Random) -> Script:
    seconds = rng.uniform(0, LONG_ANSWER if rng.random() < 0.1 else ANSWER)
    rate, burst = rng.choice(((30, 1), (50, 1), (100, 4), (200, 8)))
    ttft = rng.choice((0, 0, 0, 300))
    return Script(
        tokens=1 + int(seconds * rate), rate=rate, burst=burst, jitter=0.25, ttft_ms=ttft, seed=rng.randrange(10**6)
    )


def _prompt(script: Script) -> str:
    return msgspec.json.encode(script).decode()

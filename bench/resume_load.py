"""The load of `okome bench resume`: viewers who stay, others who come back with a cursor, and one very long session.

python -m bench.resume_load < order.json
"""

from __future__ import annotations

import asyncio
import random
import re
import sys

import msgspec
import uvloop

from bench.ask import Ask
from bench.histogram import Histogram, Times
from bench.load import Load, Order, generation, tell
from bench.record import Loaded
from bench.replay import Replays
from compose.chaos.http import call

HISTORY_RATE = 2000.0  # tokens a second that the long session is written at
HISTORY_SLACK = 60.0
REPLAY_TIMEOUT = 30.0
REPLAY_PAUSE = 1.0
_CURSOR = re.compile(rb"id: (\S+)\n")


class ResumeOrder(msgspec.Struct, frozen=True):
    """resumes: a second, in the second window. history: tokens of the long session, which the third one reads."""

    order: Order
    resumes: float
    history: int


class Seen(msgspec.Struct, frozen=True):
    ring: Times
    events: int
    seconds: list[float]
    quiet: Loaded
    resuming: Loaded
    replaying: Loaded


class ResumeLoad:
    """`run` raises ConnectionError where something is refused, or does not come."""

    def __init__(self, order: ResumeOrder) -> None:
        self._load = Load(order.order)
        self._order = order
        self._ring = Histogram()

    async def run(self) -> Seen:
        load = self._load
        async with Replays.at(load.host, load.port) as replays:
            path, token = await self._write_history(replays)
            await load.begin()
            quiet = await load.watch()
            async with asyncio.TaskGroup() as tasks:
                window = tasks.create_task(load.watch())
                tasks.create_task(self._come_back(replays, window))
            resuming = window.result()
            if not self._ring.count:
                raise ConnectionError("nobody came back")
            async with asyncio.TaskGroup() as tasks:
                window = tasks.create_task(load.watch())
                head = self._head(f"{path}?after=0&pace=0", token)
                reading = tasks.create_task(self._read_again(replays, window, head))
            events, seconds = reading.result()
            load.leave()
        return Seen(self._ring.told(), events, seconds, quiet, resuming, window.result())

    async def _write_history(self, replays: Replays) -> tuple[str, str]:
        """A session whose answer is as long as ordered: where it is read, and the token for it."""
        url, key = self._load.order.url, self._load.order.key
        made = (await call(url, "POST", "/v1/sessions", key, {})).json()
        ask = Ask(tokens=self._order.history, rate=HISTORY_RATE)
        where = f"/v1/sessions/{made['session_id']}/generations"
        answer = await call(url, "POST", where, made["token"], generation(ask))
        if answer.status != 202:
            raise ConnectionError(f"{answer.status} {answer.body[:200]!r}")
        head = self._head(f"{made['events_url']}?after=0&pace=0", made["token"])
        written = await replays.replay(head, "done", self._order.history / HISTORY_RATE + HISTORY_SLACK)
        if written.tokens != self._order.history:
            raise ConnectionError(f"the long session has {written.tokens} tokens, not {self._order.history}")
        return made["events_url"], made["token"]

    async def _come_back(self, replays: Replays, window: asyncio.Task[Loaded]) -> None:
        """Sessions drawn by chance are watched by one more, from a little before their end."""
        loop = asyncio.get_running_loop()
        rng = random.Random(1)
        due = loop.time()
        async with asyncio.TaskGroup() as tasks:
            while not window.done():
                watching = rng.choice(self._load.watching)
                if cursor := _CURSOR.search(watching.viewer.before):
                    head = watching.head.replace(b"after=now", b"after=" + cursor[1])
                    tasks.create_task(self._resume(replays, head))
                due += 1 / self._order.resumes
                await asyncio.sleep(max(0.0, due - loop.time()))

    async def _resume(self, replays: Replays, head: bytes) -> None:
        self._ring.add((await replays.replay(head, "first", REPLAY_TIMEOUT)).took)

    async def _read_again(self, replays: Replays, window: asyncio.Task[Loaded], head: bytes) -> tuple[int, list[float]]:
        """The long session from its beginning, again and again: its events, and the seconds that each time took."""
        seconds: list[float] = []
        events = 0
        while not window.done():
            replayed = await replays.replay(head, "caught_up", REPLAY_TIMEOUT)
            if replayed.tokens != self._order.history:
                raise ConnectionError(f"{replayed.tokens} of {self._order.history} tokens were read again")
            events = replayed.events
            seconds.append(replayed.took / 1e6)
            await asyncio.sleep(REPLAY_PAUSE)
        return events, seconds

    def _head(self, path: str, token: str) -> bytes:
        return (
            f"GET {path} HTTP/1.1\r\nhost: {self._load.host}:{self._load.port}\r\n"
            f"authorization: Bearer {token}\r\naccept: text/event-stream\r\n\r\n"
        ).encode()


async def main() -> None:
    await tell(ResumeLoad(msgspec.json.decode(sys.stdin.buffer.readline(), type=ResumeOrder)).run())


if __name__ == "__main__":
    uvloop.run(main())

"""The echo: a beat of our own that comes back proves that we hear, when somebody's silence is about to be believed.

A round trip that worked a second ago proves nothing of the second since: a server frozen for that long made observers
nak the jobs of live workers. It is not a question to JetStream, which an election would leave unanswered. An echo that
was long on its way proves nothing either (`Observer.on_echo`): a server that stood still may read our socket before
those of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from broker.bus.nats import Bus
from broker.bus.observer import Observer

ECHO_TIMEOUT = 0.4  # seconds; shorter than what counts as standing still


class Echo:
    """For one observer. Whoever hears beats calls `came` for its own."""

    def __init__(self, bus: Bus, observer: Observer) -> None:
        self._bus = bus
        self._observer = observer
        self._back = asyncio.Event()

    def came(self) -> None:
        self._observer.on_echo(asyncio.get_running_loop().time())
        self._back.set()

    async def hears(self, beat: Callable[[], Awaitable[None]]) -> bool:
        """Whether silence may be believed; in doubt `beat` is sent and its echo awaited. Not to be called from where
        beats are received: the echo comes that way."""
        if self._bus.round_trip_ok and self._observer.doubts(asyncio.get_running_loop().time()):
            self._back.clear()
            await beat()
            try:
                async with asyncio.timeout(ECHO_TIMEOUT):
                    await self._back.wait()
            except TimeoutError:
                return False
        return self._bus.round_trip_ok

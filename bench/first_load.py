"""The load of `okome bench first`: one answer of one token after another, nothing else on its way.

python -m bench.first_load < order.json
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvloop

from bench.ask import Ask
from bench.histogram import Histogram, Times
from bench.load import Load, Order, tell

RATE = 1000.0  # the mock engine's steps a second: a first token waits for the next one
PAUSE = 0.1  # seconds until the next one is asked for: what follows an answer is over by then


class FirstOrder(msgspec.Struct, frozen=True):
    order: Order
    asks: int


class One(Load):
    """One answer of one token."""

    @property
    def ask(self) -> Ask:
        return Ask(tokens=1, rate=RATE)


async def firsts(ordered: FirstOrder) -> Times:
    """From each request to its first token. Raises ConnectionError where one is refused or does not come."""
    times = Histogram()
    for _ in range(ordered.asks):
        load = One(ordered.order)
        load.ttft = times
        await load.begin()
        load.leave()
        await asyncio.sleep(PAUSE)
    return times.told()


async def main() -> None:
    await tell(firsts(msgspec.json.decode(sys.stdin.buffer.readline(), type=FirstOrder)))


if __name__ == "__main__":
    uvloop.run(main())

"""▸ A lost consumer is made again under a name that nobody had: a server may hang on the old one for seconds."""

from __future__ import annotations

import asyncio

from broker.bus.follow import Follow
from broker.bus.log import store
from broker.bus.nats import Bus, Msg
from tests.broker.bus.conftest import DEADLINE, make_stream


async def test_a_consumer_is_never_made_again_under_the_name_it_had(local_bus: Bus) -> None:
    stream = await make_stream(local_bus)
    names: list[str] = []
    news = asyncio.Event()

    async def overhear(msg: Msg) -> None:
        names.append(msg.subject.split(".")[5])
        news.set()

    await local_bus.subscribe(f"$JS.API.CONSUMER.CREATE.{stream}.>", overhear)
    seen: list[int] = []

    def take(seq: int, subject: str, payload: bytes, headers: dict[str, str] | None) -> None:
        seen.append(seq)
        news.set()

    follow = Follow(local_bus, stream, [f"{stream}.>"], "f", take, after=0)
    await follow.start()
    try:
        async with asyncio.timeout(DEADLINE):
            for round in range(3):
                await store(local_bus, f"{stream}.a", b"x")
                while len(names) <= round or len(seen) <= round:
                    news.clear()
                    await news.wait()
                follow.restart()
            while len(names) < 4:
                news.clear()
                await news.wait()
    finally:
        await follow.close()
    assert len(set(names)) == len(names)
    assert seen == [1, 2, 3]

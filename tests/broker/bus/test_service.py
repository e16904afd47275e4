"""Services: handlers that do not block one another, bounded, and a refusal that crosses the bus whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import msgspec
import pytest
import structlog.testing
from nats.micro import add_service
from nats.micro.request import Request as MicroRequest

from broker.bus.errors import BusUnavailable, Refusal
from broker.bus.nats import Bus
from tests.broker.bus.conftest import connected, eventually, plain
from tests.fixtures.nats_server import NatsServer

QUICK = 0.3  # seconds in which what is answered at once has been answered


class Question(msgspec.Struct):
    text: str


async def test_handlers_do_not_block_one_another(bus: Bus) -> None:
    """Eight requests meet inside one endpoint. nats.micro alone runs them one after another: the second never arrives
    while the first waits for it."""
    together = asyncio.Barrier(8)

    async def meet(question: bytes) -> bytes:
        async with asyncio.timeout(2):
            await together.wait()
        return question

    service = await bus.serve("okome", "1.0.0", "test", {f"meet_{bus.id}": meet})
    questions = [Question(f"früh {index}\n") for index in range(8)]
    answers = await asyncio.gather(*(bus.ask(f"meet_{bus.id}", question, Question) for question in questions))
    assert answers == questions
    await service.close()
    with pytest.raises(BusUnavailable):
        await bus.ask(f"meet_{bus.id}", {}, Question)


async def test_nats_micro_runs_the_requests_of_an_endpoint_one_after_another(nats: NatsServer) -> None:
    """The trap itself: when this fails, the reason for tasks of our own is gone."""
    client = await plain(nats.url)
    inside: list[int] = []
    go = asyncio.Event()

    async def handle(request: MicroRequest) -> None:
        inside.append(1)
        await go.wait()
        await request.respond(b"")

    service = await add_service(client, name="plain", version="1.0.0")
    await service.add_endpoint(name="serial", subject="plain.serial", handler=handle)
    asked = [asyncio.create_task(client.request("plain.serial", b"", timeout=5)) for _ in range(2)]
    await eventually(lambda: inside)
    await asyncio.wait(asked, timeout=QUICK)
    assert inside == [1]
    go.set()
    await asyncio.gather(*asked)
    await service.stop()
    await client.close()


async def test_a_refusal_crosses_the_bus_whole(bus: Bus) -> None:
    refusals = [
        Refusal("malformed", 'no "text"\nhere', param="text"),
        Refusal("rate_limited", "too fast", retry_after=1.5),
        Refusal("unknown_session", "früh"),
    ]

    async def refuse(question: bytes) -> bytes:
        raise refusals[json.loads(question)["index"]]

    service = await bus.serve("okome", "1.0.0", "test", {f"refuse_{bus.id}": refuse})
    for index, refusal in enumerate(refusals):
        with pytest.raises(Refusal) as caught:
            await bus.ask(f"refuse_{bus.id}", {"index": index}, Question)
        assert vars(caught.value) == vars(refusal)
    await service.close()


async def test_what_a_handler_raises_becomes_a_refusal_and_says_nothing_of_the_inside(local_bus: Bus) -> None:
    async def fail(question: bytes) -> bytes:
        text = msgspec.json.decode(question, type=Question).text
        if text == "bus":
            raise BusUnavailable("no leader")
        raise ZeroDivisionError("the inside")

    service = await local_bus.serve("okome", "1.0.0", "test", {"fail": fail})
    for text, code in [("bus", "unavailable"), (1, "malformed"), ("", "internal")]:
        with pytest.raises(Refusal) as caught, structlog.testing.capture_logs():
            await local_bus.ask("fail", {"text": text}, Question)
        assert caught.value.code == code
        assert "inside" not in caught.value.message
    await service.close()


async def test_requests_at_once_are_bounded(local_bus: Bus) -> None:
    go = asyncio.Event()
    inside: list[bytes] = []

    async def wait(question: bytes) -> bytes:
        inside.append(question)
        await go.wait()
        return question

    service = await local_bus.serve("okome", "1.0.0", "test", {"wait": wait}, limit=2)
    running = [asyncio.create_task(local_bus.ask("wait", {"text": str(index)}, Question)) for index in range(2)]
    await eventually(lambda: len(inside) == 2)
    with pytest.raises(Refusal, match="overloaded") as caught:
        await local_bus.ask("wait", {"text": "3"}, Question)
    assert caught.value.retry_after
    go.set()
    assert len(await asyncio.gather(*running)) == 2
    await local_bus.ask("wait", {"text": "4"}, Question)
    await service.close()


async def test_replicas_share_the_requests(local_bus: Bus, nats: NatsServer) -> None:
    """One queue group: a request is carried out once, by any."""
    served: list[str] = []

    def by(name: str) -> Callable[[bytes], asyncio.Future[bytes]]:
        async def serve(question: bytes) -> bytes:
            served.append(name)
            return question

        return serve  # type: ignore[return-value]

    async with connected(nats.url) as other:
        services = [
            await each.serve("okome", "1.0.0", "test", {"shared": by(name)})
            for name, each in (("a", local_bus), ("b", other))
        ]
        asked = 0
        async with asyncio.timeout(20):
            while set(served) != {"a", "b"}:  # the server may not have read yet who subscribes on the other connection
                await asyncio.gather(*(local_bus.ask("shared", {"text": "x"}, Question) for _ in range(40)))
                asked += 40
        assert len(served) == asked
        for service in services:
            await service.close()

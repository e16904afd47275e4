"""What the models take for NATS answers as NATS does: the same questions, asked of both, have the same answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from broker.bus import log
from broker.bus.errors import BusError, StoreRejected, WrongLastSequence
from broker.bus.follow import Follow
from broker.bus.nats import Bus
from broker.bus.subjects import random_id
from control.lanes import MESSAGE_GONE
from tests.fixtures.nats_server import NatsServer
from tests.models.log_model import StreamModel
from tests.models.nats_model import NatsModel
from tests.models.virtual_loop import Clock

QUESTIONS = 150
Question = Callable[[Bus], Awaitable[Any]]


async def answer(bus: Bus, question: Question) -> Any:
    try:
        return await question(bus)
    except WrongLastSequence as error:
        return "fenced", error.last
    except StoreRejected as error:
        return "gone" if error.err_code in MESSAGE_GONE else ("refused", error.err_code)
    except BusError as error:
        return type(error).__name__


def questions(stream: str, chance: random.Random) -> Question:
    """One of the verbs that the project has, with something to ask for that may or may not be there."""
    subject = f"{stream}.{chance.choice('ab')}"
    seq = 1 + chance.randrange(40)
    match chance.randrange(10):
        case 0 | 1 | 2:
            fence = chance.choice([None, None, seq, chance.randrange(6)])
            return lambda bus: log.store(bus, subject, b"%d" % seq, expect_last=fence)
        case 3:
            return lambda bus: fenced_right(bus, stream, subject)
        case 4:
            return lambda bus: log.store(bus, subject, b"once", msg_id=f"id{seq % 5}")
        case 5:
            return lambda bus: log.get(bus, stream, seq)
        case 6:
            return lambda bus: log.get(bus, stream, seq, next_by=subject)
        case 7:
            return lambda bus: log.last(bus, stream, subject)
        case 8:
            leader = chance.random() < 0.5
            return lambda bus: log.page(bus, stream, subject, seq, batch=1 + seq % 5, leader=leader)
        case _:
            return lambda bus: bus.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})


async def fenced_right(bus: Bus, stream: str, subject: str) -> int:
    last = await log.last(bus, stream, subject)
    return await log.store(bus, subject, b"right", expect_last=last.seq if last else 0)


def comparable(found: Any) -> Any:
    """Without what only one of the two says: a message's headers that nobody of us set."""
    if isinstance(found, list):
        return [comparable(each) for each in found]
    if isinstance(found, log.Stored):
        return found.seq, found.subject, found.data, (found.headers or {}).get("Nats-Msg-Id")
    return found.get("success") if isinstance(found, dict) else found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_model_answers_as_the_server_does(nats: NatsServer, seed: int) -> None:
    """Fences, message ids, gets by sequence and by subject, pages, deletions, and what a follower is given."""
    stream = f"MODEL{random_id(8)}"
    chance = random.Random(seed)
    clock = Clock()
    server = NatsModel(clock)
    server.add(StreamModel(stream, f"{stream}.*"))
    loop = clock.loop()
    pretended = server.connect(loop, "model")
    with asyncio.Runner() as runner:
        real = runner.run(Bus.connect(nats.url, "real"))
        config = {"name": stream, "subjects": [f"{stream}.*"], "storage": "memory", "allow_direct": True}
        runner.run(real.api(f"STREAM.CREATE.{stream}", config))
        for number in range(QUESTIONS):
            question = questions(stream, chance)
            expected = comparable(runner.run(answer(real, question)))
            assert comparable(clock.run(loop, answer(pretended, question))) == expected, number
        assert clock.run(loop, followed(pretended, stream)) == runner.run(followed(real, stream))
        runner.run(real.api(f"STREAM.DELETE.{stream}"))
        runner.run(real.close())
    clock.run(loop, pretended.close())
    clock.close()


async def followed(bus: Bus, stream: str) -> list[tuple[int, str, bytes]]:
    """What a follower of one subject is given that begins in the middle."""
    found: list[tuple[int, str, bytes]] = []
    follow = Follow(bus, stream, [f"{stream}.a"], "f", lambda *message: found.append(message[:3]), after=5)
    await follow.start()
    await follow.caught_up.wait()
    await follow.close()
    return found

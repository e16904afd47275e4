"""Tokens that an engine can leave where they are, drawn when a frame can be made of them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import deque

from broker.bus.frames import TOKEN
from gpu_worker.cadence import Cadence
from gpu_worker.engines import Tap
from gpu_worker.engines.engine import DRY
from gpu_worker.outbox import FRAME_TEXT, State
from gpu_worker.publisher import DRAWS, Publisher
from gpu_worker.publishing import Publishing
from tests.gpu_worker.bed import DEADLINE
from tests.gpu_worker.slow import STARTED, Slow, publisher_on


class Engine:
    """Breaths of tokens that came and were left; an empty one is what is no token."""

    def __init__(self, publisher: Publisher) -> None:
        self.left: deque[list[str]] = deque()
        self.tap = Tap()
        self.tap.source = self
        self._publisher = publisher
        publisher.follow(self.tap)

    @property
    def unread(self) -> bool:
        return bool(self.left)

    def come(self, *tokens: str) -> None:
        told = self.unread
        self.left.append(list(tokens))
        if not told:
            assert self.tap.on_unread is not None
            self.tap.on_unread()

    def draw(self) -> bool:
        if self.left:
            for token in self.left.popleft():
                self._publisher.offer(TOKEN, token, 1)
        return self.unread


def begun(slow: Slow, *, window: int | None = None, frame_interval: float = 0.0) -> tuple[Publisher, Engine]:
    """An answer whose start and first token are in the log."""
    publisher = publisher_on(Publishing(slow, window=window, cadence=Cadence(frame_interval)))
    publisher.say(STARTED)
    slow.answer(1)
    engine = Engine(publisher)
    engine.come("a ")
    slow.answer(2)
    return publisher, engine


def frames(slow: Slow) -> list[tuple[str, int]]:
    return [(frame.type, frame.n) for _, frame in slow.sent[1:]]


async def test_a_token_is_drawn_at_once_where_nothing_is_on_its_way(slow: Slow) -> None:
    publisher, engine = begun(slow)
    assert frames(slow) == [(TOKEN, 1)]
    engine.come("b ", "c ")
    assert frames(slow)[1:] == [(TOKEN, 2)], "what came together is one frame"
    await publisher.close()


async def test_what_comes_while_a_publish_is_on_its_way_is_left_until_it_is_answered(slow: Slow) -> None:
    publisher, engine = begun(slow)
    engine.come("b ")
    engine.come("c ")
    engine.come("d ")
    assert (len(engine.left), frames(slow)[1:]) == (2, [(TOKEN, 1)])
    slow.answer(3)
    assert (len(engine.left), frames(slow)[2:]) == (0, [(TOKEN, 2)])
    slow.answer(4)
    assert publisher.outbox.state is State.IDLE
    await publisher.close()


async def test_who_waits_for_his_turn_draws_when_it_comes(slow: Slow) -> None:
    publisher, engine = begun(slow, window=1)
    stream, turns = publisher._stream, publisher._turns
    assert turns.ask(stream, publisher, first=False)  # somebody else's
    engine.come("b ")
    engine.come("c ")
    assert (len(engine.left), frames(slow)[1:]) == (2, [])
    turns.over(stream)
    assert frames(slow)[1:] == [(TOKEN, 2)]
    await publisher.close()


async def test_a_turn_for_what_turns_out_to_be_no_token_is_given_back(slow: Slow) -> None:
    publisher, engine = begun(slow, window=1)
    engine.come()
    assert (frames(slow)[1:], publisher.outbox.state) == ([], State.IDLE)
    assert publisher._turns.ask(publisher._stream, publisher, first=False), "the only one"
    await publisher.close()


async def test_with_an_interval_what_comes_is_left_until_that_is_over(slow: Slow) -> None:
    publisher, engine = begun(slow, frame_interval=0.3)
    slow.news.clear()
    for token in ("b ", "c ", "d "):
        engine.come(token)
    assert (len(engine.left), frames(slow)[1:]) == (3, [])
    async with asyncio.timeout(DEADLINE):
        await slow.news.wait()
    assert (len(engine.left), frames(slow)[1:]) == (0, [(TOKEN, 3)])
    await publisher.close()


async def test_an_engine_without_end_does_not_keep_the_loop(slow: Slow) -> None:
    publisher, engine = begun(slow)
    engine.left.extend([] for _ in range(3 * DRAWS))
    engine.come("b ")
    publisher._news()
    assert len(engine.left) > DRAWS
    engine.left.clear()
    engine.left.extend(["x" * FRAME_TEXT] for _ in range(3))
    publisher._news()
    assert len(engine.left) == 2, "a frame's worth is there"
    await publisher.close()


async def test_nothing_is_drawn_for_a_publish_that_is_made_again(slow: Slow) -> None:
    publisher, engine = begun(slow)
    engine.come("b ")
    engine.come("c ")
    slow.news.clear()
    slow.lose()
    assert publisher.outbox.state is State.UNDECIDED
    async with asyncio.timeout(DEADLINE):
        await slow.news.wait()
    assert (len(engine.left), frames(slow)[1:]) == (1, [(TOKEN, 1), (TOKEN, 1)])
    slow.answer(3)
    assert (len(engine.left), frames(slow)[3:]) == (0, [(TOKEN, 1)])
    await publisher.close()


async def test_an_answer_whose_engine_has_ended_draws_no_more_and_is_garbage_by_itself(slow: Slow) -> None:
    publisher, engine = begun(slow)
    engine.tap.source = DRY  # as an engine does that has said all
    publisher.unfollow()
    assert engine.tap.on_unread is None
    engine.left.append(["b "])
    publisher._news()
    assert frames(slow)[1:] == []
    await publisher.close()
    left = weakref.ref(publisher)
    gc.disable()
    try:
        del publisher, engine
        assert left() is None
    finally:
        gc.enable()

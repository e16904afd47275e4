"""Who waits for which answer, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from broker.bus.futility import FIRST
from broker.bus.patience import LEAST, MOST
from broker.bus.replies import API, MANY, PUBLISH, Replies
from tests.models.virtual_loop import Clock


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.close()


def test_a_publish_with_no_answer_is_given_up_sooner_where_answers_are_quick(clock: Clock) -> None:
    async def play() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        replies: Replies[str] = Replies()
        given_up: list[float] = []

        def publish() -> str:
            began = loop.time()
            token = replies.expect(
                lambda answer: given_up.append(loop.time() - began) if answer is None else None, PUBLISH
            )
            replies.time(token)
            return token

        publish()
        await asyncio.sleep(2 * MOST)
        for _ in range(50):
            token = publish()
            await asyncio.sleep(0.002)
            replies.arrived(token, "stored")
        publish()
        await asyncio.sleep(2 * MOST)
        first, last = given_up
        return first, last

    first, last = clock.run(clock.loop(), play())
    assert first == pytest.approx(MOST, abs=LEAST / 2)
    assert last == pytest.approx(LEAST, abs=LEAST / 2)


def test_publishes_given_up_together_are_one_wait_in_vain(clock: Clock) -> None:
    """Two such waits double the patience, as two publishes one after the other would."""

    async def play() -> list[float]:
        loop = asyncio.get_running_loop()
        replies: Replies[str] = Replies()
        for _ in range(50):
            replies.time(token := replies.expect(lambda _: None, PUBLISH))
            replies.arrived(token, "stored")
        given_up: list[float] = []
        for _ in range(2):
            for _ in range(10):
                replies.time(replies.expect(lambda _: given_up.append(loop.time()), PUBLISH))
            await asyncio.sleep(1.5 * LEAST)
        began = loop.time()
        replies.time(replies.expect(lambda _: given_up.append(loop.time() - began), PUBLISH))
        await asyncio.sleep(MOST)
        return given_up

    given_up = clock.run(clock.loop(), play())
    assert len(given_up) == 21
    assert given_up[-1] == pytest.approx(2 * LEAST)


async def quick(replies: Replies[str], way: str) -> None:
    """Answers have come quickly for a while."""
    for _ in range(50):
        replies.time(token := replies.expect(lambda _: None, PUBLISH), way)
        await asyncio.sleep(0.002)
        replies.arrived(token, "stored")


def test_a_publish_waits_its_turn_as_long_as_those_before_it_are_answered(clock: Clock) -> None:
    """A server that has much to do would be given most of it twice. What is quicker on another way says nothing, and
    what is refused on the same way was not stored before what came before it."""

    async def play() -> int:
        replies: Replies[str] = Replies()
        await quick(replies, "a")
        given_up: list[None] = []
        tokens = [
            replies.expect(lambda answer: given_up.append(None) if answer is None else None, PUBLISH)
            for _ in range(1000)
        ]
        for token in tokens:
            replies.time(token, "a")
        other = asyncio.create_task(quick(replies, "b"))
        replies.arrived(tokens.pop(), "refused", refused=True)
        for token in tokens:
            await asyncio.sleep(LEAST / 50)
            replies.arrived(token, "stored")
        await other
        return len(given_up)

    assert clock.run(clock.loop(), play()) == 0


@pytest.mark.parametrize("way", ["a", "b"])
def test_a_publish_that_was_overtaken_or_is_alone_on_its_way_is_given_up(clock: Clock, way: str) -> None:
    """However busily others are answered: on its own way only those behind it, or none."""

    async def play() -> float:
        loop = asyncio.get_running_loop()
        replies: Replies[str] = Replies()
        await quick(replies, "a")
        began, given_up = loop.time(), loop.create_future()
        replies.time(replies.expect(lambda _: given_up.set_result(loop.time() - began), PUBLISH), way)
        answered = loop.create_task(quick(replies, "a"))
        took: float = await given_up
        assert not answered.done()
        answered.cancel()
        return took

    assert clock.run(clock.loop(), play()) < 1.5 * LEAST


def test_a_loop_that_stood_still_has_not_read_the_answers_yet(clock: Clock) -> None:
    async def play() -> list[str | None]:
        loop = asyncio.get_running_loop()
        replies: Replies[str] = Replies()
        await quick(replies, "a")
        taken: list[str | None] = []
        replies.time(token := replies.expect(taken.append, PUBLISH), "a")
        clock.now += 5 * LEAST  # in one turn of the loop
        loop.call_soon(lambda: loop.call_soon(replies.arrived, token, "stored"))
        await asyncio.sleep(LEAST / 10)
        return taken

    assert clock.run(clock.loop(), play()) == ["stored"]


def test_an_answer_is_taken_once_and_one_to_nobody_is_ignored() -> None:
    replies: Replies[str] = Replies()
    taken: list[str | None] = []
    token = replies.expect(taken.append)
    replies.arrived(token, "1")
    replies.arrived(token, "2")
    forgotten = replies.expect(taken.append)
    replies.forget(forgotten)
    replies.arrived(forgotten, "3")
    many = replies.expect(taken.append, MANY)
    replies.arrived(many, "4")
    replies.arrived(many, "5")
    assert taken == ["1", "4", "5"]


def test_a_broken_connection_ends_what_a_server_would_have_answered_and_nothing_else(clock: Clock) -> None:
    async def play() -> list[tuple[str, str | None]]:
        replies: Replies[str] = Replies()
        taken: list[tuple[str, str | None]] = []
        replies.expect(lambda answer: taken.append(("okome", answer)))
        replies.expect(lambda answer: taken.append(("api", answer)), API)
        replies.time(replies.expect(lambda answer: taken.append(("publish", answer)), PUBLISH))
        replies.disconnected()
        before_the_end = list(taken)
        replies.close()
        assert taken[len(before_the_end) :] == [("okome", None)]
        return before_the_end

    assert clock.run(clock.loop(), play()) == [("api", None), ("publish", None)]


def test_what_becomes_of_publishes_tells_whether_the_server_is_of_use(clock: Clock) -> None:
    async def play() -> list[bool]:
        loop = asyncio.get_running_loop()
        replies: Replies[str] = Replies()
        looks = []

        async def look() -> None:
            await asyncio.sleep(1.1 * FIRST)
            looks.append(replies.futility.look(loop.time()))

        replies.time(replies.expect(lambda _: None, PUBLISH))
        await asyncio.sleep(MOST)
        await look()  # no answer
        replies.arrived(replies.expect(lambda _: None, PUBLISH), "stored")
        await look()
        replies.arrived(replies.expect(lambda _: None, PUBLISH), "503", nobody=True)
        await look()  # nobody to answer
        replies.arrived(replies.expect(lambda _: None, PUBLISH), "stored")
        replies.gave_up(replies.expect(lambda _: None, PUBLISH))
        replies.arrived(replies.expect(lambda _: None, API), "read")
        await look()  # no answer, and a read proves nothing
        replies.gave_up(replies.expect(lambda _: None))
        await look()
        return looks

    assert clock.run(clock.loop(), play()) == [True, False, True, True, False]

"""Fewer frames for those who ask for it: tokens collect, and what is not a token does not wait."""

from __future__ import annotations

import asyncio

import pytest

from broker.bus.frames import DONE, REASONING, TOKEN
from gpu_worker.cadence import LONGEST, MOMENTS, Cadence
from gpu_worker.outbox import FRAME_TEXT, State, Stop
from gpu_worker.publisher import Publisher
from gpu_worker.publishing import Publishing
from tests.gpu_worker.bed import DEADLINE
from tests.gpu_worker.slow import STARTED, Slow, publisher_on


async def begun(slow: Slow, cadence: float | Cadence) -> Publisher:
    """An answer whose start and first token are in the log."""
    cadence = cadence if isinstance(cadence, Cadence) else Cadence(cadence)
    publisher = publisher_on(Publishing(slow, cadence=cadence))
    publisher.say(STARTED)
    slow.answer(1)
    publisher.offer(TOKEN, "a ", 1)
    assert len(slow.sent) == 2, "the first token goes at once"
    slow.answer(2)
    return publisher


def frames(slow: Slow) -> list[tuple[str, int]]:
    return [(frame.type, frame.n) for _, frame in slow.sent[2:]]


async def test_tokens_collect_until_the_interval_is_over(slow: Slow) -> None:
    since = asyncio.get_running_loop().time()
    publisher = await begun(slow, 0.5)
    slow.news.clear()
    for piece in ("b ", "c ", "d "):
        publisher.offer(TOKEN, piece, 1)
    assert frames(slow) == []
    async with asyncio.timeout(DEADLINE):
        await slow.news.wait()
    assert asyncio.get_running_loop().time() - since > 0.5 * (1 - 0.5 / MOMENTS) - 0.001
    assert frames(slow) == [(TOKEN, 3)]
    publisher.offer(TOKEN, "e ", 1)  # while that is on its way
    await asyncio.sleep(0.6)
    slow.answer(3)
    assert frames(slow) == [(TOKEN, 3), (TOKEN, 1)], "it waited long enough"
    slow.answer(4)
    await publisher.close()


async def test_one_that_comes_after_the_interval_goes_at_once(slow: Slow) -> None:
    publisher = await begun(slow, 0.05)
    await asyncio.sleep(0.07)
    publisher.offer(TOKEN, "b ", 1)
    assert frames(slow) == [(TOKEN, 1)]
    await publisher.close()


async def test_what_is_not_a_token_goes_at_once_and_takes_along_what_waits(slow: Slow) -> None:
    publisher = await begun(slow, 1.0)
    publisher.offer(TOKEN, "b ", 1)
    publisher.offer(TOKEN, "c ", 1)
    publisher.say((DONE, {"finish_reason": "stop", "t": 0}))
    assert frames(slow) == [(TOKEN, 2)]
    slow.answer(3)
    assert frames(slow) == [(TOKEN, 2), (DONE, 0)]
    slow.answer(4)
    assert publisher.outbox.state is State.ENDED
    await publisher.close()


async def test_whoever_waits_until_all_is_in_the_log_does_not_wait_for_the_interval(slow: Slow) -> None:
    publisher = await begun(slow, 1.0)
    publisher.offer(TOKEN, "b ", 1)
    writing = asyncio.create_task(publisher.write())
    await asyncio.sleep(0)
    assert frames(slow) == [(TOKEN, 1)]
    publisher.offer(TOKEN, "c ", 1)
    slow.answer(3)
    assert frames(slow) == [(TOKEN, 1), (TOKEN, 1)]
    slow.answer(4)
    assert await writing
    await publisher.close()


async def test_a_frames_worth_of_text_does_not_wait(slow: Slow) -> None:
    publisher = await begun(slow, 1.0)
    publisher.offer(TOKEN, "b" * (FRAME_TEXT - 1), 1)
    assert frames(slow) == []
    publisher.offer(TOKEN, "c", 1)
    assert frames(slow) == [(TOKEN, 2)]
    await publisher.close()


async def test_an_answer_that_is_given_up_while_it_collects_publishes_nothing_more(slow: Slow) -> None:
    publisher = await begun(slow, 1.0)
    publisher.offer(TOKEN, "b ", 1)
    timer = publisher._timer
    assert timer is not None
    await publisher.close()
    assert timer.cancelled()
    assert frames(slow) == []


async def test_the_first_token_of_another_kind_waits_for_no_interval_of_its_own(slow: Slow) -> None:
    publisher = await begun(slow, 0.5)
    slow.news.clear()
    publisher.offer(TOKEN, "b ", 1)
    publisher.offer(REASONING, "so ", 1)
    async with asyncio.timeout(DEADLINE):
        await slow.news.wait()
    assert frames(slow) == [(TOKEN, 1)]
    slow.answer(3)
    assert frames(slow) == [(TOKEN, 1), (REASONING, 1)]
    await publisher.close()


async def test_a_timer_for_less_than_a_moment_is_none(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of uvloop's clock, which counts milliseconds, it would fire at once, and so again."""
    publisher = await begun(slow, 1.0)
    due = round((publisher._sent_at + 1.0) * MOMENTS) / MOMENTS
    monkeypatch.setattr(publisher._loop, "time", lambda: due - 1e-10)
    publisher.offer(TOKEN, "b ", 1)
    monkeypatch.undo()
    assert frames(slow) == [(TOKEN, 1)]
    await publisher.close()


@pytest.mark.parametrize("why", Stop)
async def test_whoever_is_stopped_streams_no_more(slow: Slow, why: Stop) -> None:
    cadence = Cadence()
    publisher = await begun(slow, cadence)
    assert cadence.streaming == 1
    publisher.stop(why)
    publisher.stop(Stop.LEFT)
    await publisher.close()
    assert cadence.streaming == 0


async def test_whoever_has_ended_or_never_began_streams_no_more(slow: Slow) -> None:
    cadence = Cadence()
    never = publisher_on(Publishing(slow, cadence=cadence))
    await never.close()
    publisher = await begun(slow, cadence)
    publisher.say((DONE, {"finish_reason": "stop", "t": 0}))
    slow.answer(3)
    assert publisher.outbox.state is State.ENDED
    assert cadence.streaming == 0
    await publisher.close()
    assert cadence.streaming == 0


async def test_tokens_of_a_worker_that_has_very_many_collect(slow: Slow) -> None:
    cadence = Cadence(collect_above=100)
    for _ in range(19):  # others
        cadence.enter()
    publisher = await begun(slow, cadence)
    now = asyncio.get_running_loop().time()
    cadence.stored(1000, now + 1.0)
    publisher.offer(TOKEN, "b ", 1)
    publisher.offer(TOKEN, "c ", 1)
    assert frames(slow) == []
    await publisher.close()
    cadence.stored(1000, now + 2.0)
    assert cadence.interval == LONGEST, "19 are left"
    for _ in range(19):
        cadence.leave()
    cadence.stored(1000, now + 3.0)
    assert cadence.interval == 0.0, "who has ended does not count"

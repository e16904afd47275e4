"""Answers that are good for a moment, and who asks for them."""

import asyncio
from collections.abc import Callable

import pytest

from broker.bus.errors import BusUnavailable
from control.fresh import Fresh


class Asked:
    """What is asked stays open until it is `told`, or it fails."""

    def __init__(self) -> None:
        self.open: list[asyncio.Future[int]] = []

    async def __call__(self, key: str) -> int:
        answer = asyncio.get_running_loop().create_future()
        self.open.append(answer)
        return int(await answer)


async def waiting(fresh: Fresh[int], count: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(fresh.get("key")) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_who_asks_meanwhile_shares_the_answer_and_who_asks_soon_has_it() -> None:
    asked = Asked()
    fresh = Fresh(asked, 60.0)
    tasks = await waiting(fresh, 3)
    asked.open[0].set_result(7)
    assert await asyncio.gather(*tasks) == [7, 7, 7]
    assert await fresh.get("key") == 7
    assert len(asked.open) == 1


async def test_who_gives_up_is_nobody_elses_failure() -> None:
    """The first of those who wait asks again, for all of them."""
    asked = Asked()
    first, *others = await waiting(Fresh(asked, 60.0), 3)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(asked.open) == 2
    asked.open[1].set_result(7)
    assert await asyncio.gather(*others) == [7, 7]


@pytest.mark.parametrize("make", [lambda: BusUnavailable("gone"), lambda: KeyError("what")])
async def test_all_who_asked_are_told_of_a_failure_and_the_next_one_asks_anew(make: Callable[[], Exception]) -> None:
    asked = Asked()
    fresh = Fresh(asked, 60.0)
    error = make()
    tasks = await waiting(fresh, 2)
    asked.open[0].set_exception(error)
    assert await asyncio.gather(*tasks, return_exceptions=True) == [error, error]
    (task,) = await waiting(fresh, 1)
    asked.open[1].set_result(7)
    assert await task == 7

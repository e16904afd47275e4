"""The one timer."""

import asyncio

from gpu_worker.engines.ticker import Ticker


async def test_it_wakes_in_the_order_of_deadlines_and_never_early() -> None:
    """Whoever asks for an earlier moment is woken first, whenever they asked."""
    ticker, loop = Ticker(), asyncio.get_running_loop()
    began, woken = loop.time(), []

    async def wait(after: float) -> None:
        await ticker.until(began + after)
        # A loop may run a timer up to its clock's resolution early.
        assert loop.time() - began > after - 0.001
        woken.append(after)

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for after in (0.06, 0.02, 0.04, 0.0):
            tasks.create_task(wait(after))
    assert woken == [0.0, 0.02, 0.04, 0.06]


async def test_cancelled_waits_do_not_pile_up() -> None:
    """Ten thousand waits for a far moment, cancelled, leave next to nothing behind."""
    ticker, loop = Ticker(), asyncio.get_running_loop()
    for _ in range(100):
        waits = [asyncio.ensure_future(ticker.until(loop.time() + 600)) for _ in range(100)]
        await asyncio.wait(waits, timeout=0)
        for wait in waits:
            wait.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait(waits)
    assert len(ticker) < 200
    ticker.close()


async def test_closing_wakes_everyone() -> None:
    """Nobody waits on a ticker that is closed."""
    ticker, loop = Ticker(), asyncio.get_running_loop()
    wait = asyncio.ensure_future(ticker.until(loop.time() + 600))
    await asyncio.wait({wait}, timeout=0)
    ticker.close()
    ticker.close()
    async with asyncio.timeout(5):
        await wait

"""Live events are written from where they come, past the subscriber's task, and in the same order."""

from __future__ import annotations

import asyncio

from broker.node.events import make
from broker.node.pacer import Pacer
from broker.node.start import Start
from tests.broker.node.memory_log import MemoryHistory, MemoryLog, MemoryTail, Viewer, end, settle


def test_the_usual_live_event_wakes_no_task() -> None:
    """It is written from where it came; what needs more than that is the task's, which says all of it in order."""

    async def run() -> None:
        log = MemoryLog()
        tail, history = MemoryTail(log), MemoryHistory(log)
        viewer = Viewer(tail, history, Start("first"), takes=True)
        viewer.free()
        try:
            await settle()
            for _ in range(8):
                log.write()
                tail.deliver(1)
                await settle(20)
            assert (viewer.pushed, len(viewer.frames)) == (8, 8)
            viewer.takes = False
            for _ in range(4):
                log.write()
                tail.deliver(1)
            await settle()
            assert (viewer.pushed, len(viewer.frames)) == (8, 12)
            viewer.takes = True
            log.write()
            viewer.subscriber.notice(make("queued", {}), "new")
            tail.deliver(1)
            await settle()
            assert [event.data for event in viewer.frames] == [frame.data for frame in log.frames]
        finally:
            await end(tail, [viewer])

    asyncio.run(run())


def test_a_burst_goes_through_the_pacer_in_order_whoever_writes_it() -> None:
    async def run() -> None:
        log = MemoryLog()
        tail, history = MemoryTail(log), MemoryHistory(log)
        viewer = Viewer(tail, history, Start("first"), takes=True, pacer=Pacer(0.5))
        viewer.free()
        try:
            await settle()
            for _ in range(12):
                log.write()
            tail.deliver(12)
            await settle(20)
            assert 0 < len(viewer.frames) < 12, "the first at once, the others later"
            async with asyncio.timeout(10):
                while len(viewer.frames) < 12:  # noqa: ASYNC110  # time passes by itself
                    await asyncio.sleep(0.005)
            assert [event.data for event in viewer.frames] == [frame.data for frame in log.frames]
        finally:
            await end(tail, [viewer])

    asyncio.run(run())

"""Subscriber: every frame once, in order, byte for byte, whatever happens in between; and no wakeup is lost."""

from __future__ import annotations

import asyncio
import json
from itertools import chain, repeat

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.bus.subjects import Cursor
from broker.node.events import closed, make
from broker.node.start import Start
from tests.broker.node.memory_log import (
    SID,
    MemoryHistory,
    MemoryLog,
    MemoryTail,
    Viewer,
    end,
    in_memory,
    settle,
    written,
)

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write"] * 5
            + ["deliver"] * 4
            + ["drop", "attach", "allow", "allow", "allow", "evict", "turns", "notice", "hb", "full"]
        ),
        st.integers(0, 6),
    ),
    max_size=60,
)
STARTS = st.sampled_from(["fresh", "first", "now", "cursor"])
DELAYS = st.lists(st.integers(0, 5), max_size=40)


async def play(actions: list[tuple[str, int]], starts: list[str], delays: list[int], bytes_limit: int) -> None:
    log = MemoryLog()
    tail = MemoryTail(log, ring_frames=16, partition_bytes=bytes_limit)
    history = MemoryHistory(log)
    log.delays = chain(delays, repeat(1))
    viewers: list[tuple[Viewer, int]] = []  # and the sequence behind which it begins

    def attach(which: int) -> None:
        word = starts[len(viewers) % len(starts)]
        cursor = None
        if word == "cursor":
            places = [0, *(message.seq for message in log.stored)]
            cursor = Cursor(log.incarnation, places[which * 7 % len(places)])
        viewer = Viewer(tail, history, Start(word, cursor), takes=which % 2 == 0)
        viewers.append((viewer, cursor.sequence if cursor else 0))

    try:
        for action, number in [*actions, ("attach", 3)]:
            match action:
                case "write":
                    for _ in range(number):
                        log.write(gap=number % 2)
                case "deliver":
                    tail.deliver(number)
                case "drop":
                    tail.drop()
                case "attach" if len(viewers) < 4:
                    attach(number)
                case "allow":
                    for viewer, _ in viewers[number % 3 :]:
                        viewer.allow()
                case "evict":
                    tail.evict()
                case "notice":
                    for viewer, _ in viewers:
                        viewer.subscriber.notice(make("queued", {}), "new")
                case "full":
                    for viewer, _ in viewers[number % 3 :]:
                        viewer.takes = not viewer.takes
                case "hb":
                    for viewer, _ in viewers:
                        viewer.subscriber.heartbeat()
                case _:
                    await settle(number)
            await settle(number % 3)
        for viewer, _ in viewers:
            viewer.free()
        tail.deliver(len(log.undelivered))
        log.write()  # what follows shows that the one before was lost
        tail.deliver(1)
        await settle()
        assert tail.held_bytes == tail.ring_bytes
        for viewer, place in viewers:
            check(viewer, place, log)
    finally:
        await end(tail, [viewer for viewer, _ in viewers])


def check(viewer: Viewer, place: int, log: MemoryLog) -> None:
    assert not viewer.task.done() or viewer.task.exception() is None
    start = viewer.subscriber._start.word
    hello = json.loads(viewer.events[0].data)
    assert viewer.events[0].name == "hello"
    assert hello["cursor"] == viewer.events[0].cursor
    assert "reset" not in viewer.names()
    assert viewer.names().count("caught_up") == 1
    if start == "now":
        place = int(hello["cursor"].partition("-")[2])
    if start == "fresh":
        messages = [event for event in viewer.events if event.name == "message"]
        if messages:
            place = int(messages[-1].cursor.partition("-")[2])
        told = {json.loads(event.data)["generation_id"] for event in messages}
        assert told == {frame.gid for frame in log.frames if frame.seq <= place}, "whole turns, and all of them"
    expected = [frame for frame in log.frames if frame.seq > place]
    assert [event.cursor for event in viewer.frames] == [f"first-{frame.seq}" for frame in expected]
    assert [event.data for event in viewer.frames] == [frame.data for frame in expected]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS, st.lists(STARTS, min_size=1, max_size=4), DELAYS, st.sampled_from([0, 3000, 1 << 20]))
def test_every_viewer_sees_every_frame_once_in_order_whatever_is_interleaved(
    actions: list[tuple[str, int]], starts: list[str], delays: list[int], bytes_limit: int
) -> None:
    """Slow viewers, rings that are cut, frames lost on the way, pages that take their time."""
    asyncio.run(play(actions, starts, delays, bytes_limit))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=25), DELAYS, STARTS, st.integers(0, 30))
def test_a_log_that_is_replaced_is_said_so_and_then_shown_whole(
    steps: list[tuple[int, int]], delays: list[int], word: str, replace_at: int
) -> None:
    """After the one `reset` that names the new incarnation comes the new log from its first frame; never a mixture."""

    async def run() -> None:
        log = old = MemoryLog()
        tail = MemoryTail(log)
        history = MemoryHistory(log)
        log.delays = chain(delays, repeat(1))
        for _ in range(6):
            log.write()
        tail.deliver(6)
        viewer = Viewer(tail, history, Start(word, Cursor("first", 3) if word == "cursor" else None))
        try:
            await settle(60)
            for index, (writes, turns) in enumerate([*steps, *[(1, 1)] * (replace_at + 1 - len(steps))]):
                if index == replace_at:
                    log = MemoryLog("second")
                    log.delays = old.delays
                    history.log = log
                    tail.replace(log)
                for _ in range(writes):
                    log.write()
                tail.deliver(writes)
                viewer.allow()
                await settle(turns)
            viewer.free()
            await settle()
            names = viewer.names()
            assert names.count("reset") == 1
            at = names.index("reset")
            assert json.loads(viewer.events[at].data) == {"earliest": "second-0", "reason": "other_incarnation"}
            before = [event for event in viewer.frames if event.cursor.startswith("first-")]
            after = [event for event in viewer.events[at:] if event.cursor]
            assert before == [event for event in viewer.events[:at] if event in viewer.frames]
            assert [event.data for event in after] == [frame.data for frame in log.frames]
            assert [event.cursor for event in after] == [f"second-{frame.seq}" for frame in log.frames]
        finally:
            await end(tail, [viewer])

    asyncio.run(run())


# -- single rules ------------------------------------------------------------------------------------------------------


def test_what_is_said_while_a_page_is_read_is_heard() -> None:
    """No lost wakeup: an end, a notice and a heartbeat that come during any await are given out without another."""

    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        for turns in range(12):
            written(log, tail, 5)
            tail.evict()
            log.delays = repeat(4)
            viewer = Viewer(tail, history, Start("first"))
            viewer.free()
            await settle(turns)
            viewer.subscriber.notice(make("queued", {}), "new")
            viewer.subscriber.end("over", closed("overloaded", "over"))
            await settle()
            assert viewer.ended(), f"after {turns} turns"
            assert viewer.names()[-1] == "closed"
            await end(tail, [viewer])

    in_memory(body)


def test_a_reader_at_the_end_of_a_forgotten_ring_hears_the_next_frame() -> None:
    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 5)
        viewer = Viewer(tail, history, Start("first"))
        viewer.free()
        await settle()
        tail._forget(SID)
        viewer.subscriber.wake()
        log.delays = repeat(3)
        await settle(4)
        written(log, tail, 1)
        await settle()
        assert [event.data for event in viewer.frames] == [frame.data for frame in log.frames]
        await end(tail, [viewer])

    in_memory(body)


def test_a_log_purged_under_a_viewer_is_a_reset_and_never_silence() -> None:
    """The next conversation begins at prev 0: it follows nothing that the viewer has."""

    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 5)
        viewer = Viewer(tail, history, Start("first"))
        viewer.free()
        await settle()
        log.purge()
        written(log, tail, 1)
        await settle()
        assert viewer.names()[-3:] == ["reset", "start", "caught_up"], "the first frame alone says it"
        written(log, tail, 2)
        await settle()
        names = viewer.names()
        assert names[-5:] == ["reset", "start", "caught_up", "token", "token"]
        assert json.loads(viewer.events[-5].data)["earliest"] == "first-0"
        assert [event.data for event in viewer.frames[-3:]] == [frame.data for frame in log.frames]
        log.purge()
        written(log, tail, 2)
        await settle()
        assert viewer.names()[-4:] == ["reset", "start", "token", "caught_up"], "and a second time is no broken log"
        await end(tail, [viewer])

    in_memory(body)


def test_a_cursor_whose_frames_have_aged_out_is_reset_to_the_earliest() -> None:
    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 40)
        tail.evict()
        tail._forget(SID)
        log.purge(keep=12)
        viewer = Viewer(tail, history, Start("cursor", Cursor("first", 10)))
        viewer.free()
        await settle()
        assert viewer.names()[:2] == ["hello", "reset"]
        assert json.loads(viewer.events[1].data)["earliest"] == f"first-{log.frames[0].prev}"
        assert [event.data for event in viewer.frames] == [frame.data for frame in log.frames]
        await end(tail, [viewer])

    in_memory(body)


def test_where_everything_has_aged_out_the_log_goes_on_from_its_end() -> None:
    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 40)
        log.purge()
        viewers = [
            Viewer(tail, history, start)
            for start in (Start("first"), Start("cursor", Cursor("first", 3)), Start("fresh"), Start("now"))
        ]
        for viewer in viewers:
            viewer.free()
        await settle()
        for viewer in viewers:
            assert viewer.names()[-1] == "caught_up", viewer.names()
            assert viewer.subscriber.cursor == "first-40"
        assert [viewer.names().count("reset") for viewer in viewers] == [1, 1, 0, 0]
        await end(tail, viewers)

    in_memory(body)


def test_a_reset_names_the_logs_beginning_not_the_rings() -> None:
    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        for _ in range(100):
            log.write(gap=1)
        tail.deliver(100)
        foreign = Cursor("first", 5)  # another session's frame: ours have even sequences
        viewer = Viewer(tail, history, Start("cursor", foreign))
        viewer.free()
        await settle()
        assert viewer.names()[:2] == ["hello", "reset"]
        assert json.loads(viewer.events[1].data)["earliest"] == "first-0"
        assert [event.data for event in viewer.frames] == [frame.data for frame in log.frames]
        await end(tail, [viewer])

    in_memory(body)


def test_a_log_that_cannot_be_read_further_is_closed_not_shown_and_not_repeated_for_ever() -> None:
    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 3)
        log.put(b"okome/1 token gX 9 bbbbbbbb %d 77 1\n{}" % log.last)  # follows by sequence, and may not
        tail.deliver(1)
        for start in ("first", "fresh"):
            viewer = Viewer(tail, history, Start(start))
            viewer.free()
            await settle()
            assert viewer.ended()
            assert viewer.names()[-1] == "closed"
            assert viewer.names().count("reset") == 1
            assert b"gX" not in b"".join(event.data for event in viewer.events)
            await end(tail, [viewer])

    in_memory(body)


def test_a_viewer_ahead_of_this_nodes_tail_waits_for_it_and_repeats_nothing() -> None:
    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 4)
        for _ in range(3):
            log.write()
        viewer = Viewer(tail, history, Start("cursor", Cursor("first", 6)))
        viewer.free()
        await settle()
        assert viewer.names() == ["hello"], "it has not caught up before the tail has"
        tail.deliver(3)
        await settle()
        assert viewer.names() == ["hello", "caught_up", "token"]
        await end(tail, [viewer])

    in_memory(body)


def test_caught_up_comes_at_the_end_of_history_not_after_the_live_part() -> None:
    """A writer quicker than its viewer does not keep it from hearing where history ended."""

    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 10)
        viewer = Viewer(tail, history, Start("first"))
        for _ in range(30):
            await settle(5)
            written(log, tail, 1)
            viewer.allow()
        assert "caught_up" in viewer.names()
        await end(tail, [viewer])

    in_memory(body)


def test_the_reconnect_of_a_leaving_node_names_the_place_where_it_is_said() -> None:
    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 7)
        viewer = Viewer(tail, history, Start("fresh"))
        log.delays = repeat(2)
        await settle(3)
        viewer.subscriber.leave(120)  # while it reads what is finished
        viewer.free()
        await settle()
        assert viewer.names()[-1] == "reconnect"
        given = [event.cursor for event in viewer.events if event.cursor][-1]
        assert json.loads(viewer.events[-1].data) == {"cursor": given, "after_ms": 120}
        await end(tail, [viewer])

    in_memory(body)


def test_notices_of_a_reader_that_stopped_are_bounded() -> None:
    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        viewer = Viewer(tail, history, Start("now"))
        await settle()
        for _ in range(1000):
            viewer.subscriber.notice(make("queued", {}), "new")
        viewer.free()
        await settle()
        assert viewer.names().count("queued") == 32
        await end(tail, [viewer])

    in_memory(body)


def test_a_page_of_the_next_log_is_not_shown_as_one_of_the_log_before() -> None:
    """The stream is made anew; a page is read from it before the tail knows, and arrives when it does."""

    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 5)
        tail._forget(SID)
        anew = MemoryLog("second")
        for _ in range(5):
            anew.write()
        log.delays = iter([0] * 4)
        viewer = Viewer(tail, history, Start("cursor", Cursor("first", 0)))
        await settle(20)
        tail._forget(SID)
        tail.reader.log = history.log = anew  # type: ignore[attr-defined]
        anew.delays = iter([0, 100])
        viewer.free()
        await settle(20)
        tail.replace(anew)
        await settle()
        assert [event.cursor for event in viewer.frames] == [f"second-{frame.seq}" for frame in anew.frames]
        await end(tail, [viewer])

    in_memory(body)

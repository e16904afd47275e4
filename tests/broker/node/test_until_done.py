"""Where a stream ends that is to end with an answer."""

from __future__ import annotations

from broker.bus.frames import TERMINAL
from broker.bus.subjects import Cursor
from broker.node.pacer import Pacer
from broker.node.start import Start
from tests.broker.node.memory_log import MemoryHistory, MemoryLog, MemoryTail, Viewer, end, in_memory, settle, written


def test_until_done_ends_with_the_first_terminal_behind_caught_up() -> None:
    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 7)  # a whole answer, and the next one begun
        viewer = Viewer(tail, history, Start("first"), until_done=True)
        viewer.free()
        await settle()
        assert viewer.names()[-1] == "caught_up"
        assert not viewer.ended(), "the answer before does not count"
        written(log, tail, 8)  # its end, and one more answer
        await settle()
        assert viewer.ended()
        assert viewer.subscriber.end_reason == "done"
        assert viewer.names()[-1] == "done"
        assert [name for name in viewer.names() if name in TERMINAL] == ["done", "done"]
        await end(tail, [viewer])

    in_memory(body)


def test_history_that_begins_anew_after_a_reset_ends_anew() -> None:
    """Also for one who waits for an end: those of old answers, told once more, are not the one that it waits for."""

    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 17)
        viewer = Viewer(tail, history, Start("now"), until_done=True)
        viewer.allow()
        await settle()
        assert viewer.names() == ["hello", "caught_up"]
        written(log, tail, 40)  # while it reads nothing
        log.purge(keep=22)
        viewer.free()
        await settle()
        names = viewer.names()
        told = names[names.index("reset") :]
        assert told[-1] == "caught_up", told
        assert told.count("done") > 1
        assert not viewer.ended(), "the running answer has not ended"
        written(log, tail, 3)
        await settle()
        assert viewer.ended()
        assert viewer.names()[-3:] == ["token", "token", "done"]

    in_memory(body)


def test_until_done_ends_at_caught_up_where_nothing_runs() -> None:
    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 5)
        for start in (Start("first"), Start("fresh"), Start("now"), Start("cursor", Cursor("first", 5))):
            viewer = Viewer(tail, history, start, until_done=True)
            viewer.free()
            await settle()
            assert viewer.ended(), start
            assert viewer.names()[-1] == "caught_up"
            assert viewer.subscriber.end_reason == "done"

    in_memory(body)


def test_a_stream_of_one_generation_ends_with_it_and_where_it_does_not_run() -> None:
    """Its end may be history, while another one runs; or have aged out of the log."""

    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 12)
        first, second, running = log.answers
        lost = Start("cursor", Cursor("before", 5))
        ends = {}
        for gid, start in ((first, Start("first")), (second, Start("first")), ("aged out", lost), (running, lost)):
            viewer = Viewer(tail, history, start, until_done=True, gid=gid)
            viewer.free()
            await settle()
            ends[gid] = (viewer.ended(), viewer.names()[-1], viewer.names().count("done"))
        over = {first: (True, "done", 1), second: (True, "done", 2), "aged out": (True, "caught_up", 2)}
        assert ends == {**over, running: (False, "caught_up", 2)}
        written(log, tail, 3)
        await settle()
        assert (viewer.ended(), viewer.names()[-1]) == (True, "done")

    in_memory(body)


def test_until_done_ends_also_with_what_the_pacer_still_held() -> None:
    """The reader was slow, and the next answer has run past his place meanwhile."""

    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 1)
        viewer = Viewer(tail, history, Start("first"), until_done=True, pacer=Pacer(0.1))
        for _ in range(3):
            viewer.allow()
        await settle()
        assert viewer.names() == ["hello", "start", "caught_up"]
        written(log, tail, 4)
        await settle()
        written(log, tail, 40)
        viewer.free()
        await settle()
        assert (viewer.ended(), viewer.names()[3:]) == (True, ["token", "token", "token", "done"])
        await end(tail, [viewer])

    in_memory(body)

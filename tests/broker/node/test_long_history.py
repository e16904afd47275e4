"""A long history: its pages are read while they are given out, and are long for whoever is quick."""

from __future__ import annotations

from typing import cast

import pytest

from broker.node.start import Start
from broker.node.subscriber import LONG_AFTER
from tests.broker.node.memory_log import (
    MemoryHistory,
    MemoryLog,
    MemoryReader,
    MemoryTail,
    Viewer,
    end,
    in_memory,
    settle,
    written,
)


def test_the_next_page_is_asked_for_while_one_is_given_out() -> None:
    """And every page once: so a long history is read by NATS and written by the node at the same time."""

    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 40)
        tail.evict()
        viewer = Viewer(tail, history, Start("first"))
        viewer.allow()  # the hello is taken, and the first page waits to be
        await settle()
        assert len(viewer.frames) == tail.reader.page_size
        assert tail.asked == [0, viewer.subscriber.seq]
        viewer.free()
        await settle()
        assert [event.data for event in viewer.frames] == [frame.data for frame in log.frames]
        assert len(tail.asked) == len(set(tail.asked))
        await end(tail, [viewer])

    in_memory(body)


@pytest.mark.parametrize(("quick", "size"), [(60.0, MemoryReader.long_page), (0.0, MemoryReader.page_size)])
def test_whoever_takes_a_long_history_as_it_comes_gets_long_pages(
    quick: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who is slow short ones: what he has not taken yet is held for him."""
    monkeypatch.setattr("broker.node.subscriber.QUICK", quick)

    async def body(log: MemoryLog, tail: MemoryTail, history: MemoryHistory) -> None:
        written(log, tail, 150)
        tail.evict()
        viewer = Viewer(tail, history, Start("first"))
        viewer.free()
        await settle()
        assert [event.data for event in viewer.frames] == [frame.data for frame in log.frames]
        sizes = cast(MemoryReader, tail.reader).sizes
        unknown = LONG_AFTER + 1 if quick else len(sizes)
        assert set(sizes[:unknown]) == {MemoryReader.page_size}, "nobody knows yet how quick he is"
        assert len(sizes) > LONG_AFTER + 2
        assert set(sizes[unknown:]) <= {size}
        await end(tail, [viewer])

    in_memory(body)

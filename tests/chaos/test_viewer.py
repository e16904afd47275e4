"""What a viewer is waited for: events that may come, and an end after which none does."""

import asyncio

import pytest

from compose.chaos.viewer import Seen, Viewer


def _event(name: str, number: int) -> Seen:
    return Seen(float(number), name, f"0-{number}", b"{}")


@pytest.fixture
def viewer() -> Viewer:
    return Viewer(lambda: "http://127.0.0.1:1", "sid", "token")


async def test_token_events_are_waited_for(viewer: Viewer) -> None:
    waiting = asyncio.create_task(viewer.seen(2))
    viewer._take(_event("token", 1))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    viewer._take(_event("token", 2))
    await asyncio.wait_for(waiting, 1)
    assert not viewer.over


async def test_an_answer_that_ended_in_fewer_events_is_not_waited_for(viewer: Viewer) -> None:
    waiting = asyncio.create_task(viewer.seen(3))
    viewer._take(_event("token", 1))
    viewer._take(_event("done", 2))
    await asyncio.wait_for(waiting, 1)
    assert viewer.over


async def test_after_a_reset_it_has_not_seen_the_end(viewer: Viewer) -> None:
    viewer._take(_event("done", 1))
    viewer._take(Seen(2.0, "reset", "", b"{}"))
    assert not viewer.over


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"retry_after_ms":"soon"}', b"\xff"])
def test_what_cannot_be_read_is_remembered_like_everything(viewer: Viewer, data: bytes) -> None:
    told = [
        Seen(0.0, name, "", data) for name in ("served_by", "start", "token", "reconnect", "closed", "reset", "done")
    ]
    for event in told:
        viewer._take(event)
    viewer._take_block(1.0, b"id: \xff\nevent: \xff\ndata: " + data)
    viewer._take_message(2.0, b'{"event":"\xff","id":"\xff","data":' + data + b"}")
    assert viewer.events[: len(told)] == told
    assert [event.seq for event in viewer.events] == [0] * (len(told) + 2)

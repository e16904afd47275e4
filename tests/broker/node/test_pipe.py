"""What is written past ASGI reads as what goes through it."""

from __future__ import annotations

import json

import pytest
from websockets.frames import Frame, Opcode

from broker.node import pipe
from broker.node.events import Event, body_of
from broker.node.pipe import pipe_under
from broker.node.rfc6455 import BINARY, TEXT, frame
from tests.broker.node.test_ws import Socket, at
from tests.fixtures.node import RunningNode


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_frame_is_the_one_that_websockets_makes(opcode: int, size: int) -> None:
    data = b"x" * size
    assert frame(opcode, data) == Frame(Opcode(opcode), data).serialize(mask=False)


def test_several_events_are_one_body() -> None:
    one, other = Event("token", b"1", "a-1"), Event("token", b"2", "a-2")
    assert body_of([one, other]) == one.sse + other.sse
    assert body_of([one]) == one.sse


async def test_where_send_is_not_uvicorns_there_is_no_pipe() -> None:
    async def send(message: object) -> None: ...

    assert pipe_under(send) is None


async def test_live_events_go_past_asgi_on_both_transports(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are written to a real client, which reads every byte of them."""
    written: set[str] = set()

    def noted(kind: type[pipe.Pipe]) -> None:
        write = kind.write

        def noting(self: pipe.Pipe, batch: list[Event]) -> None:
            written.add(kind.__name__)
            write(self, batch)

        monkeypatch.setattr(kind, "write", noting)

    noted(pipe._Http)
    noted(pipe._Socket)
    author = await node.session()
    query = "?after=0&pace=0"
    async with node.events(author.sid, after="0", pace="0") as events, at(node, author.sid, query) as connection:
        socket = Socket(connection)
        await events.until("caught_up")
        await socket.until("caught_up")
        await author.answer(5)
        assert [event["data"] for event in await events.until("done")] == author.data
        assert [event["data"] for event in await socket.until("done")] == [json.loads(data) for data in author.data]
    assert written == {"_Http", "_Socket"}

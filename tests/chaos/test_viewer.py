"""What a viewer is waited for: events that may come, and an end after which none does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from compose.chaos.viewer import STAY, Seen, Transport, Viewer

DONE, TOKEN = ("done", b'{"offset":2}'), ("token", b'{"offset":0}')
Event = tuple[str, bytes]


def _event(name: str, number: int) -> Seen:
    return Seen(float(number), name, f"0-{number}", b"{}")


PAUSE = 0.05


@asynccontextmanager
async def told(transport: Transport, *parts: list[Event], ends: bool = True, code: int = 1000) -> AsyncIterator[Viewer]:
    """A viewer whose every connection is told these parts, a pause behind each, and then may end in good order."""
    serving: list[asyncio.Task[None] | None] = []

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        with closing(writer), suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for part in parts:
                body = b"".join(b"id: 0-1\nevent: %s\ndata: %s\n\n" % (name.encode(), data) for name, data in part)
                writer.write(b"%x\r\n%s\r\n" % (len(body), body))
                await asyncio.sleep(PAUSE)
            if not ends:
                await reader.read()
            writer.write(b"0\r\n\r\n")

    async def socket(connection: ServerConnection) -> None:
        for part in parts:
            for name, data in part:
                await connection.send(f'{{"event":"{name}","id":"0-1","data":{data.decode()}}}')
            await asyncio.sleep(PAUSE)
        if not ends:
            await connection.wait_closed()
        await connection.close(code)

    async with AsyncExitStack() as stack:
        if transport is Transport.SSE:
            server = await stack.enter_async_context(await asyncio.start_server(stream, "127.0.0.1", 0))
            port = server.sockets[0].getsockname()[1]
        else:
            listening = await stack.enter_async_context(
                serve(socket, "127.0.0.1", 0, subprotocols=[Subprotocol("okome.v1")])
            )
            port = next(iter(listening.sockets)).getsockname()[1]
        yield Viewer(lambda: f"http://127.0.0.1:{port}", "sid", "token", transport=transport)
        await asyncio.wait_for(asyncio.gather(*(task for task in serving if task is not None)), 10)


async def stopped(watching: asyncio.Task[None]) -> None:
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


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
    viewer._terminals = 2
    viewer._take(_event("done", 1))
    viewer._take(Seen(2.0, "reset", "", b"{}"))
    assert viewer.ended == 0


async def test_a_reset_behind_the_last_end_keeps_it_no_longer(viewer: Viewer) -> None:
    viewer._take(_event("done", 1))
    viewer._take(Seen(2.0, "reset", "", b"{}"))
    assert viewer.over


@pytest.mark.parametrize("transport", Transport)
async def test_what_comes_behind_the_last_end_is_seen(transport: Transport) -> None:
    async with told(transport, [DONE], [DONE, TOKEN], ends=False) as viewer:
        began = asyncio.get_running_loop().time()
        await asyncio.wait_for(viewer.watch(), 10)
        assert asyncio.get_running_loop().time() - began >= STAY
    assert [event.name for event in viewer.events] == ["done", "done", "token"]
    assert viewer.connections == 1


@pytest.mark.parametrize("transport", Transport)
async def test_whoever_has_seen_the_end_leaves_with_what_ends_then(transport: Transport) -> None:
    async with told(transport, [DONE]) as viewer:
        await asyncio.wait_for(viewer.watch(), 10)
    assert viewer.over
    assert viewer.connections == 1


@pytest.mark.parametrize("transport", Transport)
@pytest.mark.parametrize(
    "last", [TOKEN, ("closed", b'{"code":"internal"}'), ("reconnect", b'{"after_ms":0}')], ids=lambda last: str(last[0])
)
async def test_a_connection_that_ends_before_the_answer_is_lost(transport: Transport, last: Event) -> None:
    async with told(transport, [last]) as viewer:
        watching = asyncio.create_task(viewer.watch())
        await asyncio.wait_for(viewer.changed(lambda one: bool(one.lost) or len(one.events) > 1), 10)
        await stopped(watching)
    assert len(viewer.lost) >= 1


@pytest.mark.parametrize("transport", Transport)
async def test_whoever_is_told_to_come_again_later_has_lost_nothing(transport: Transport) -> None:
    async with told(transport, [("closed", b'{"code":"unavailable","retry_after_ms":10}')]) as viewer:
        watching = asyncio.create_task(viewer.watch())
        await asyncio.wait_for(viewer.changed(lambda one: bool(one.lost) or len(one.events) > 1), 10)
        await stopped(watching)
    assert viewer.lost == []


async def test_a_socket_that_cannot_be_served_now_is_not_lost() -> None:
    async with told(Transport.WS, [TOKEN], code=1013) as viewer:
        watching = asyncio.create_task(viewer.watch())
        await asyncio.wait_for(viewer.changed(lambda one: bool(one.lost) or len(one.events) > 1), 10)
        await stopped(watching)
    assert viewer.lost == []


@pytest.mark.parametrize("transport", Transport)
async def test_whoever_breaks_off_has_lost_nothing(transport: Transport) -> None:
    async with told(transport, [TOKEN], ends=False) as viewer:
        watching = asyncio.create_task(viewer.watch())
        await asyncio.wait_for(viewer.changed(lambda one: len(one.events) > 0), 10)
        assert viewer.kick()
        await asyncio.wait_for(viewer.changed(lambda one: bool(one.lost) or len(one.events) > 1), 10)
        await stopped(watching)
    assert viewer.lost == []


async def test_whoever_does_not_read_leaves_behind_the_end_all_the_same() -> None:
    async with told(Transport.SSE, [DONE], ends=False) as viewer:
        watching = asyncio.create_task(viewer.watch())
        await viewer.changed(lambda one: one.over)
        viewer.hold()
        await asyncio.wait_for(watching, 10)


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

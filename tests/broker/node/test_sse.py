"""SSE: every stored frame once, in order, byte for byte; every cursor is one to go on from."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from broker.bus import records
from broker.bus.clock import now_ms
from broker.bus.kv import Bucket
from broker.bus.records import Generation, Message, Request, Session
from tests.broker.node.conftest import Plane
from tests.control.okome import until
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import TENANT, Author, RunningNode, running_node


async def test_a_viewer_sees_every_frame_once_in_order_and_as_it_is_stored(node: RunningNode) -> None:
    author = await node.session()
    async with node.events(author.sid, after="0") as events:
        hello = await events.next()
        assert hello["event"] == "hello"
        assert (await events.next())["event"] == "caught_up"
        await author.answer(200)
        seen = await events.until("done")
    incarnation = await node.incarnation()
    assert [event["id"] for event in seen] == [f"{incarnation}-{seq}" for seq in author.seqs]
    assert [event["data"] for event in seen] == author.data


async def test_every_cursor_resumes_exactly_behind_its_frame(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(30)
    incarnation = await node.incarnation()
    for index, seq in enumerate(author.seqs):
        async with node.events(author.sid, after=f"{incarnation}-{seq}") as events:
            seen = await events.until("caught_up")
        assert [event["data"] for event in seen[1:-1]] == author.data[index + 1 :]


async def test_no_character_of_an_answer_ends_a_line_of_its_event(node: RunningNode) -> None:
    """httpx splits where Unicode has line ends, and so do many clients."""
    author, said = await node.session(), [f"a{end}b" for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"]
    async with node.events(author.sid, after="0") as events:
        await author.start("".join(said))
        for text in said:
            await author.tokens(1, text)
        await author.done()
        seen = await events.until("done")
    data = [json.loads(event["data"]) for event in seen if event["event"] in ("start", "token")]
    assert data[0]["input"][0]["content"] == "".join(said)
    assert [one["text"] for one in data[1:]] == said


async def test_a_viewer_behind_its_ring_reads_the_log_and_then_joins_the_ring(nats: NatsServer) -> None:
    async with running_node(nats, "node-small", ring_frames=16, warm_frames=0) as node:
        author = await node.session()
        await author.start()
        await author.tokens(300)
        async with node.events(author.sid, after="0") as events:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(author.tokens(300))
                seen = await events.until("caught_up")
            await author.done()
            seen += await events.until("done")
        data = [event["data"] for event in seen if "id" in event and event["event"] != "hello"]
        assert data == author.data


class Wire:
    """A client that shows the bytes, and reads only when it is told to."""

    def __init__(self, node: RunningNode, path: str, headers: dict[str, str], receive_buffer: int = 0) -> None:
        at = urlsplit(node.url)
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect((at.hostname, at.port))
        self.socket.setblocking(False)
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n{fields}\r\n".encode())
        self.bytes = bytearray()

    async def until(self, wanted: bytes, timeout: float = 20) -> None:
        loop, looked = asyncio.get_running_loop(), 0  # at what was looked through already: the node runs in this loop
        async with asyncio.timeout(timeout):
            while self.bytes.find(wanted, looked) < 0:
                looked = max(0, len(self.bytes) - len(wanted))
                chunk = await loop.sock_recv(self.socket, 1 << 20)
                assert chunk, f"closed before {wanted!r}: {self.bytes[-500:]!r}"
                self.bytes += chunk

    @property
    def body(self) -> bytes:
        """Chunks put together, as far as they are whole."""
        rest = bytes(self.bytes).partition(b"\r\n\r\n")[2]
        body = b""
        while rest:
            size, found, rest = rest.partition(b"\r\n")
            if not found or len(rest) < (length := int(size, 16)) + 2:
                return body
            body, rest = body + rest[:length], rest[length + 2 :]
        return body

    def close(self) -> None:
        self.socket.close()


class Wires:
    """Clients that are closed when the test is over."""

    def __init__(self) -> None:
        self.open: list[Wire] = []

    def __call__(self, node: RunningNode, path: str, **options: int) -> Wire:
        sid = path.split("/")[3]
        self.open.append(Wire(node, path, node.bearer(sid), **options))
        return self.open[-1]

    def close(self) -> None:
        for wire in self.open:
            wire.close()


@pytest.fixture
def wires() -> Iterator[Wires]:
    made = Wires()
    yield made
    made.close()


async def test_the_first_bytes_are_headers_retry_and_a_hello_with_data_and_id(node: RunningNode, wires: Wires) -> None:
    author = await node.session()
    await author.answer(2)
    wire = wires(node, f"/v1/sessions/{author.sid}/events?after=now")
    await wire.until(b"caught_up")
    head, _, _ = wire.bytes.partition(b"\r\n\r\n")
    assert b"200 OK" in head
    for header in (
        b"content-type: text/event-stream; charset=utf-8",
        b"cache-control: no-cache, no-transform",
        b"x-accel-buffering: no",
    ):
        assert header in head
    lines = wire.body.decode().split("\n")
    cursor = f"{await node.incarnation()}-{author.seqs[-1]}"
    assert lines[0] == "retry: 1000"
    assert lines[1:3] == [f"id: {cursor}", "event: hello"]
    said = json.loads(lines[3].removeprefix("data: "))
    assert said["session_id"] == author.sid
    assert said["cursor"] == cursor
    assert (said["node"], set(said)) == (node.id, {"session_id", "cursor", "earliest", "node", "t"})


async def test_silence_brings_one_line_and_no_event(nats: NatsServer, wires: Wires) -> None:
    """`: hb` and a line end; a blank line behind it would break openai-py."""
    async with running_node(nats, "node-hb", heartbeat_interval=0.5) as node:
        author = await node.session()
        wire = wires(node, f"/v1/sessions/{author.sid}/events?after=0")
        await wire.until(b": hb\n")
        await author.answer(1)
        await wire.until(b"event: done")
        text = wire.body.decode()
        assert "\n\n: hb\n" in text
        assert ": hb\n\n" not in text


async def test_a_temporary_refusal_is_200_retry_closed_and_a_permanent_one_a_status(nats: NatsServer) -> None:
    async with running_node(nats, "node-one", max_subscribers=1) as node:
        author = await node.session()
        async with node.events(author.sid) as first:
            await first.until("caught_up")
            async with node.events(author.sid) as second:
                assert second.response.status_code == 200
                assert second.response.headers["content-type"].startswith("text/event-stream")
                (closed,) = await second.rest()
        said = json.loads(closed["data"])
        assert (closed["event"], said["code"], said["retry_after_ms"]) == ("closed", "overloaded", 2000)
        events = f"/v1/sessions/{author.sid}/events"
        for path, headers, status, code in [
            (f"{events}?after=junk", node.bearer(author.sid), 400, "malformed"),
            (events, {**node.bearer(author.sid), "last-event-id": "a-b-c"}, 400, "malformed"),
            ("/v1/sessions/x.y*z/events", node.bearer(author.sid), 400, "malformed"),
            (events, {}, 401, "unauthenticated"),
            (events, node.bearer("00" + "z" * 20), 403, "forbidden"),
            (f"/v1/sessions/00{'q' * 20}/events", {"authorization": f"Bearer {node.api_key}"}, 404, "unknown_session"),
        ]:
            answer = await node.http.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), path
            assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


async def test_last_event_id_beats_after(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(3)
    cursor = f"{await node.incarnation()}-{author.seqs[2]}"
    async with node.events(author.sid, headers={"last-event-id": cursor}, after="0") as events:
        seen = await events.until("caught_up")
    assert [event["data"] for event in seen[1:-1]] == author.data[3:]


async def test_a_cursor_that_cannot_be_honoured_is_reset_and_the_same_connection_goes_on(node: RunningNode) -> None:
    """Another incarnation, beyond the leader's last, another session's: said so, with the earliest; then everything."""
    author, other = await node.session(), await node.session()
    await author.answer(3)
    await other.answer(3)
    incarnation = await node.incarnation()
    for cursor, reason in [
        (f"{'x' * 8}-{author.seqs[2]}", "other_incarnation"),
        (f"{incarnation}-{other.seqs[-1] + 1000}", "unknown_cursor"),
        (f"{incarnation}-{other.seqs[1]}", "expired_or_foreign"),
    ]:
        async with node.events(author.sid, after=cursor) as events:
            seen = await events.until("caught_up")
            reset = json.loads(next(event for event in seen if event["event"] == "reset")["data"])
            assert reset == {"earliest": f"{incarnation}-0", "reason": reason}
            data = [event["data"] for event in seen if "id" in event and event["event"] != "hello"]
            assert data == author.data, cursor
            await author.answer(1)
            more = await events.until("done")
            assert [event["data"] for event in more] == author.data[-3:]
    await author.answer(1)
    async with node.events(author.sid, after=f"{incarnation}-{other.seqs[1]}") as events:  # inside what is there
        assert "reset" in [event["event"] for event in await events.until("caught_up")]


async def test_a_fresh_viewer_gets_finished_turns_in_one_piece_and_the_running_one_token_by_token(
    node: RunningNode,
) -> None:
    author = await node.session()
    await author.answer(5)
    await author.start("more")
    await author.tokens(2)
    async with node.events(author.sid) as events:
        seen = await events.until("caught_up")
        messages = [json.loads(event["data"]) for event in seen if event["event"] == "message"]
        assert [(message["role"], message["content"]) for message in messages] == [
            ("user", "hello"),
            ("assistant", "0 1 2 3 4 "),
        ]
        assert messages[1]["finish_reason"] == "stop"
        incarnation = await node.incarnation()
        ids = [event["id"] for event in seen if event["event"] == "message"]
        assert ids == [f"{incarnation}-{author.seqs[0]}", f"{incarnation}-{author.seqs[6]}"]
        frames = [event for event in seen if event["event"] in ("start", "token")]
        await author.done()
        frames += await events.until("done")
    assert [event["data"] for event in frames] == author.data[7:]


async def test_the_record_of_a_turn_in_another_log_is_told_and_is_no_place_in_this_one(node: RunningNode) -> None:
    """OKOME's records outlive a log: their sequences must not make a viewer skip, or wait for, frames of this one."""
    for old_end in (3, 100_000):
        author = await node.session()
        await author.answer(8)
        record = Generation(
            "gold",
            author.sid,
            TENANT,
            Request("m", [Message("user", "long ago")]),
            1,
            0,
            records.Status.DONE,
            first_seq=1,
            last_seq=old_end,
            text="answered",
            finish_reason="stop",
        )
        await Bucket(node.bus, "generations").put(f"{author.sid}.gold", records.encode(record))
        async with node.events(author.sid) as events:
            seen = await events.until("caught_up")
            told = [json.loads(event["data"])["content"] for event in seen if event["event"] == "message"]
            assert told == ["long ago", "answered", "hello", "0 1 2 3 4 5 6 7 "]
            placed = [event["event"] for event in seen if "id" in event]
            assert placed == ["message", "message"], "who is cut off before these begins anew"
            first = next(event["id"] for event in seen if "id" in event)
            await author.start()
            assert [event["data"] for event in await events.until("start")] == author.data[-1:]
        async with node.events(author.sid, after=first) as events:
            seen = await events.until("caught_up")
        assert [event["data"] for event in seen if event["event"] not in ("hello", "caught_up")] == author.data[1:]


async def test_of_several_inputs_only_the_last_is_a_place_to_go_on_from(node: RunningNode) -> None:
    author = await node.session()
    gid = await author.start()
    await author.done()
    record = Generation(
        gid,
        author.sid,
        TENANT,
        Request("m", [Message("system", "be brief"), Message("user", "hello")]),
        1,
        0,
        records.Status.DONE,
        first_seq=author.seqs[0],
        last_seq=author.seqs[-1],
        finish_reason="stop",
    )
    await Bucket(node.bus, "generations").put(f"{author.sid}.{gid}", records.encode(record))
    async with node.events(author.sid) as events:
        seen = await events.until("caught_up")
    places = [(event["event"], event.get("id", "").rpartition("-")[2]) for event in seen]
    assert places == [
        ("hello", "0"),
        ("message", ""),
        ("message", str(author.seqs[0])),
        ("message", str(author.seqs[-1])),
        ("caught_up", ""),
    ]


async def accepted(node: RunningNode, author: Author, status: str = "queued", after: int | None = None) -> str:
    """A generation as OKOME has accepted it: its record, and the session's place."""
    gid = f"g{author.sid[-10:]}"
    request = Request("m", [Message("user", "and now?")])
    place = author.prev if after is None else after
    record = Generation(gid, author.sid, TENANT, request, now_ms(), place, records.Status(status))
    await Bucket(node.bus, "generations").put(f"{author.sid}.{gid}", records.encode(record))
    session = Session(author.sid, TENANT, now_ms(), now_ms(), "m", running=gid)
    await Bucket(node.bus, "sessions").put(f"{TENANT}.{author.sid}", records.encode(session))
    return gid


async def test_a_fresh_viewer_is_told_of_a_generation_that_waits_for_a_worker(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(2)
    gid = await accepted(node, author)
    async with node.events(author.sid) as events:
        seen = await events.until("caught_up")
    assert [event["event"] for event in seen] == ["hello", "message", "message", "queued", "caught_up"]
    said = json.loads(seen[3]["data"])
    assert "id" not in seen[3]
    assert said == {"generation_id": gid, "input": [{"role": "user", "content": "and now?"}], "position": 0}
    async with node.events(author.sid, after="0") as events:
        assert "queued" not in [event["event"] for event in await events.until("caught_up")], "only who comes anew"


@pytest.mark.parametrize("start", [{}, {"after": "0"}, {"after": "now"}])
async def test_until_done_waits_for_what_is_queued_and_ends_with_it(node: RunningNode, start: dict[str, str]) -> None:
    author = await node.session()
    await author.answer(2)
    await accepted(node, author)
    async with node.events(author.sid, headers=None, until="done", **start) as events:
        await events.until("caught_up")
        await author.answer(3)
        seen = await events.rest()
    assert [event["data"] for event in seen] == author.data[-5:]


async def test_until_done_ends_though_nobody_closed_the_record_of_what_has_ended(node: RunningNode) -> None:
    """OKOME is down: the log says that the generation is over, its record does not."""
    author = await node.session()
    await author.answer(2)
    await accepted(node, author, "running", after=0)
    async with node.events(author.sid, until="done") as events:
        assert (await events.rest())[-1]["event"] == "caught_up"
    cursor = f"{await node.incarnation()}-{author.seqs[-1]}"
    answer = await node.http.get(
        f"/v1/sessions/{author.sid}/events", params={"after": cursor, "until": "done"}, headers=node.bearer(author.sid)
    )
    assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (204, b"", "no-store")


async def test_a_reconnect_until_done_is_204_only_where_nothing_is_left(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(2)
    incarnation = await node.incarnation()

    async def status(seq: int) -> int:
        url = f"/v1/sessions/{author.sid}/events?until=done&after={incarnation}-{seq}"
        async with node.http.stream("GET", url, headers=node.bearer(author.sid)) as response:
            return response.status_code

    assert await status(author.seqs[-1]) == 204
    assert await status(author.seqs[-2]) == 200, "the terminal is behind the cursor"
    gid = await accepted(node, author)
    assert await status(author.seqs[-1]) == 200, "one is queued"
    await Bucket(node.bus, "generations").delete(f"{author.sid}.{gid}")
    assert await status(author.seqs[-1]) == 204
    await author.start()
    assert await status(author.seqs[-1]) == 200, "one runs"


async def test_a_client_that_has_gone_is_noticed(node: RunningNode, wires: Wires) -> None:
    author = await node.session()
    wire = wires(node, f"/v1/sessions/{author.sid}/events")
    await wire.until(b"caught_up")
    assert await subscribers(node) == 1
    wire.close()
    await until(lambda: _nobody(node), "the subscriber is gone")


async def _nobody(node: RunningNode) -> bool:
    return await subscribers(node) == 0


async def subscribers(node: RunningNode) -> float:
    metrics = (await node.http.get("/metrics")).text
    found = [line for line in metrics.splitlines() if line.startswith("okome_node_subscribers{")]
    return sum(float(line.rpartition(" ")[2]) for line in found)


async def test_a_reader_that_stops_reading_costs_kilobytes_disturbs_nobody_and_then_reads_on_exactly(
    nats: NatsServer, wires: Wires
) -> None:
    """Five of them, behind 5 MB of answers: neither their node's memory nor anybody else's stream tells."""
    async with running_node(nats, "node-slow", ring_frames=64, partition_bytes=1 << 20) as node:
        author = await node.session()
        path = f"/v1/sessions/{author.sid}/events?after=0"
        stopped = [wires(node, path, receive_buffer=4096) for _ in range(5)]
        await asyncio.gather(*(wire.until(b"caught_up") for wire in stopped))
        async with node.events(author.sid, after="0") as events:
            await events.until("caught_up")
            await author.start()
            await author.tokens(20, "x" * 10_000)
            before = psutil.Process().memory_info().rss
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(author.tokens(500, "x" * 10_000))
                seen: list[Any] = [await events.next() for _ in range(521)]
            await author.done()
            seen += await events.until("done")
            assert [event["data"] for event in seen] == author.data, "a live viewer beside them"
            grown = psutil.Process().memory_info().rss - before - sum(map(len, author.payloads)) - 5_000_000
            assert grown < 10_000_000, "what the test itself keeps is taken off: author and viewer"
        wire = stopped[3]
        await wire.until(author.payloads[-1].partition(b"\n")[2] + b"\n\n\r\n")  # the last event and its chunk, whole
        data = [line.removeprefix("data: ") for line in wire.body.decode().split("\n") if line.startswith("data: ")]
        assert data[2:] == author.data
        wires.close()  # before the node ends: it would wait for them


async def test_a_post_that_accepts_an_event_stream_streams_that_answer(plane: Plane) -> None:
    made = await plane.session()
    author = Author(plane.bus, made["session_id"])
    path = f"/v1/sessions/{made['session_id']}/generations"
    headers = {"authorization": f"Bearer {made['token']}", "accept": "text/event-stream"}
    async with asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(plane.http.post(path, json={"prompt": "hi"}, headers=headers))
        await until(lambda: plane.jobs(), "the job is queued")
        await author.answer(3)
    answer = answering.result()
    assert answer.status_code == 200
    assert answer.headers["x-okome-generation"]
    names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert [name for name in names if name not in ("queued", "caught_up")] == [
        "hello", "start", "token", "token", "token", "done",
    ]  # fmt: skip
    assert names.count("caught_up") <= 1  # where, and whether at all, depends on who was quicker


async def test_a_paced_viewer_and_one_with_pace_0_see_the_same_events(node: RunningNode) -> None:
    """The pacer delays bursts (test_pacer.py says how); it changes nothing of what is seen."""
    author = await node.session()
    await author.start()
    await author.tokens(1)
    async with node.events(author.sid, after="now") as paced, node.events(author.sid, after="now", pace="0") as raw:
        await paced.until("caught_up")
        await raw.until("caught_up")
        for _ in range(4):  # the pacer learns how quick the source is
            await asyncio.gather(author.tokens(20), asyncio.sleep(0.1))
        await author.done()
        assert [event["data"] for event in await paced.until("done")] == author.data[2:]
        assert [event["data"] for event in await raw.until("done")] == author.data[2:]

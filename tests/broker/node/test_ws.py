"""WebSocket: the same stream, a few requests, and close codes that say whether to come back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from broker.bus.clock import now_ms
from broker.bus.credentials import digest, new_api_key
from broker.bus.kv import Bucket
from broker.bus.records import ApiKey, Revocation, encode
from broker.node import ws as ws_module
from broker.node.operations import Operations
from tests.broker.node.conftest import Plane
from tests.broker.node.shared_door import shared_door
from tests.control.okome import generation_record, until
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import RunningNode, running_node

DEADLINE = 10.0


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """However a client leaves, that is no error of ours."""
    yield
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    said = capsys.readouterr()
    assert "error    ]" not in said.out + said.err


class Socket:
    """One connection, message by message."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def say(self, event: str, **data: Any) -> None:
        await self.connection.send(json.dumps({"event": event, "data": data}))

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE):
            message: dict[str, Any] = json.loads(await self.connection.recv())
        assert set(message) <= {"event", "id", "data"}
        return message

    async def until(self, *names: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while not found or found[-1]["event"] not in names:
            found.append(await self.next())
        return found

    async def end(self) -> tuple[list[dict[str, Any]], int]:
        """What is still said, and the close code."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionClosed):
                async for message in self.connection:
                    found.append(json.loads(message))
            await self.connection.wait_closed()
        assert self.connection.close_code is not None
        return found, self.connection.close_code


SHARED = False


@pytest.fixture(autouse=True, params=[False, True], ids=["own", "shared"])
def connection_of_its_own_or_shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether viewers come to the node each on a connection of their own, or all on one, as through an ingress."""
    monkeypatch.setattr(f"{__name__}.SHARED", request.param)


@contextlib.asynccontextmanager
async def at(node: RunningNode, sid: str, query: str = "", **options: Any) -> AsyncIterator[ClientConnection]:
    """A connection with the token as subprotocol, unless `options` say otherwise."""
    offered = options.pop("offered", ["okome.v1", f"bearer.{node.token(sid)}"])
    async with contextlib.AsyncExitStack() as stack:
        door = await stack.enter_async_context(shared_door(node)) if SHARED else node.url.replace("http", "ws")
        subprotocols = [Subprotocol(name) for name in offered] or None
        url = f"{door}/v1/sessions/{sid}/ws{query}"
        connecting = connect(url, subprotocols=subprotocols, proxy=None, compression=None, **options)
        yield await stack.enter_async_context(connecting)


async def test_the_stream_is_the_one_of_sse_in_envelopes(node: RunningNode) -> None:
    author = await node.session()
    async with at(node, author.sid, "?after=0") as connection:
        assert connection.subprotocol == "okome.v1"
        socket = Socket(connection)
        hello, caught_up = await socket.until("caught_up")
        assert (hello["event"], hello["id"]) == ("hello", hello["data"]["cursor"])
        assert "id" not in caught_up
        await author.answer(20)
        seen = await socket.until("done")
    incarnation = await node.incarnation()
    assert [message["id"] for message in seen] == [f"{incarnation}-{seq}" for seq in author.seqs]
    assert [message["data"] for message in seen] == [json.loads(data) for data in author.data]


async def test_the_token_comes_by_subprotocol_header_cookie_or_first_message(node: RunningNode) -> None:
    author = await node.session()
    token = node.token(author.sid)
    host = node.url.removeprefix("http://")
    ways: list[dict[str, Any]] = [
        {"offered": ["okome.v1", f"bearer.{token}"]},
        {"offered": ["okome.v1"], "additional_headers": {"authorization": f"Bearer {token}"}},
        {
            "offered": ["okome.v1"],
            "additional_headers": {"cookie": f"x[]=1; okome_s={token}"},
            "origin": f"http://{host}",
        },
        {"offered": ["okome.v1"]},
        {"offered": []},
    ]
    for way in ways:
        first = len(way) == 1 and not any("bearer" in name for name in way["offered"])
        async with at(
            node, author.sid, **{**way, "origin": Origin(way["origin"]) if "origin" in way else None}
        ) as connection:
            socket = Socket(connection)
            if first:
                await socket.say("auth", token=token)
            assert (await socket.next())["event"] == "hello", way


CASES = ("none", "expired", "forged", "foreign", "cookie", "illegal", "cursor", "unknown", "revoked")


async def test_a_refusal_is_an_accepted_connection_and_a_code(node: RunningNode) -> None:
    author = await node.session()
    for case in CASES:
        await refused(node, author.sid, case)


async def refused(node: RunningNode, sid: str, case: str) -> None:
    code, query = 4401, ""
    options: dict[str, Any] = {}
    match case:
        case "none":
            options = {"offered": ["okome.v1"]}
        case "expired":
            options = {"offered": ["okome.v1", f"bearer.{node.token(sid, life=-100)}"]}
        case "forged":
            options = {"offered": ["okome.v1", f"bearer.{node.token(sid)[:-6]}AAAAAA"]}
        case "foreign":
            options, code = {"offered": ["okome.v1", f"bearer.{node.token('00' + 'z' * 20)}"]}, 4403
        case "cookie":
            cookie = {"cookie": f"okome_s={node.token(sid)}"}
            options, code = (
                {"offered": ["okome.v1"], "additional_headers": cookie, "origin": Origin("http://evil")},
                4403,
            )
        case "revoked":
            await Bucket(node.bus, "revoked").put(f"sid.{sid}", encode(Revocation(now_ms(), "deleted")))
            await until(lambda: _refused(node, sid), "the node knows")
        case "illegal":
            sid, code = "x.y", 4400
        case "cursor":
            query, code = "?after=junk", 4400
        case "unknown":
            sid, code = "00" + "q" * 20, 4404
            options = {"offered": ["okome.v1", f"bearer.{node.api_key}"]}
    async with at(node, sid, query, **options) as connection:
        socket = Socket(connection)
        if case == "none":
            await socket.say("hello")
        said, closed = await socket.end()
    assert (said, closed) == ([], code), case


async def _refused(node: RunningNode, sid: str) -> bool:
    return (await node.http.get(f"/v1/sessions/{sid}/messages", headers=node.bearer(sid))).status_code == 401


async def test_another_tenants_key_opens_no_session_by_message_either(node: RunningNode) -> None:
    """An API key in the first message, or in a later one, opens its own tenant's sessions and no other's."""
    author, stranger = await node.session(), new_api_key()
    await author.answer(3)
    await Bucket(node.bus, "keys").put(digest(stranger), encode(ApiKey("key2", "rival", "test", now_ms())))
    await until(lambda: _knows(node, stranger), "the node knows the key")
    for key, codes in ((stranger, 4404), (node.api_key, None)):
        async with at(node, author.sid, offered=["okome.v1"]) as connection:
            socket = Socket(connection)
            await socket.say("auth", token=key)
            if codes is None:
                assert (await socket.until("caught_up"))[0]["event"] == "hello"
            else:
                assert await socket.end() == ([], codes)
    async with at(node, author.sid) as connection:
        socket = Socket(connection)
        await socket.until("caught_up")
        await socket.say("auth", token=stranger)
        (closed,), code = await socket.end()
        assert (closed["event"], closed["data"]["code"], code) == ("closed", "unknown_session", 4404)


async def _knows(node: RunningNode, key: str) -> bool:
    return (await node.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200


async def test_json_nested_without_end_is_4400(node: RunningNode) -> None:
    """What no parser can follow is a bad message, not a broken connection."""
    author = await node.session()
    async with at(node, author.sid) as connection:
        socket = Socket(connection)
        await socket.until("caught_up")
        await connection.send('{"event":"ping","data":' + "[" * 100_000 + "]" * 100_000 + "}")
        assert (await socket.end())[1] == 4400


async def test_who_says_nothing_is_closed_with_4408(nats: NatsServer) -> None:
    async with running_node(nats, "node-auth", auth_timeout=0.2) as node:
        author = await node.session()
        async with at(node, author.sid, offered=["okome.v1"]) as connection:
            assert await Socket(connection).end() == ([], 4408)


GARBAGE: list[str | bytes] = [
    "{", "[]", '"x"', "{}", '{"event": 1}', '{"event": "ping", "data": []}', '{"event": "nonsense"}', b"\x00\x01",
    '{"event": "generate", "data": {"prompt": "x"}}', '{"event": "cancel", "data": {"request_id": 7}}',
    '{"event": "resume", "data": {"after": "junk"}}', '{"event": "resume", "data": {"after": 5}}',
    '{"event": "auth", "data": {}}', json.dumps({"event": "\U0001f600" * 40}, ensure_ascii=False),
    "x" * (1024 * 1024 + 1),
]  # fmt: skip


async def test_garbage_is_4400_and_no_other_stream_is_disturbed(node: RunningNode) -> None:
    author = await node.session()
    async with at(node, author.sid, "?after=0") as beside:
        await Socket(beside).until("caught_up")
        for garbage in GARBAGE:
            async with at(node, author.sid, "?after=now") as connection:
                await Socket(connection).until("caught_up")
                await connection.send(garbage)
                (closed,), code = await Socket(connection).end()
                assert (closed["event"], closed["data"]["code"], code) == ("closed", "malformed", 4400), garbage[:60]
        await author.answer(2)
        expected = [json.loads(data) for data in author.data]
        assert [message["data"] for message in await Socket(beside).until("done")] == expected


async def test_a_message_of_a_mebibyte_is_taken(node: RunningNode) -> None:
    author = await node.session()
    async with at(node, author.sid) as connection:
        socket = Socket(connection)
        await socket.until("caught_up")
        padding = "x" * (1024 * 1024 - 60)
        await socket.say("ping", padding=padding)
        assert await socket.next() == {"event": "pong", "data": {}}


async def test_resume_in_the_middle_of_a_connection_goes_on_from_there(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(5)
    async with at(node, author.sid) as connection:
        socket = Socket(connection)
        await socket.until("caught_up")
        for index in (0, 3, 6):
            await socket.say("resume", after=f"{await node.incarnation()}-{author.seqs[index]}")
            seen = await socket.until("caught_up")
            assert seen[0]["event"] == "hello"
            assert [message["data"] for message in seen[1:-1]] == [
                json.loads(data) for data in author.data[index + 1 :]
            ]
        await author.answer(1)
        assert len(await socket.until("done")) == 3


async def test_until_done_ends_with_what_runs_and_at_once_where_nothing_does(node: RunningNode) -> None:
    author = await node.session()
    async with at(node, author.sid, "?after=0&until=done") as connection:
        events, code = await Socket(connection).end()
        assert ([event["event"] for event in events], code) == (["hello", "caught_up"], 1000)
    await author.start()
    async with at(node, author.sid, "?after=0&until=done") as connection:
        seen = await Socket(connection).until("caught_up")  # the node may hear of the start after it
        await author.tokens(3)
        await author.done()
        events, code = await Socket(connection).end()
        names = [event["event"] for event in seen + events if event["event"] not in ("hello", "caught_up")]
        assert (names, code) == (["start"] + ["token"] * 3 + ["done"], 1000)
    async with at(node, author.sid, "?until=never") as connection:
        assert await Socket(connection).end() == ([], 4400)


async def test_heartbeats_are_events_of_their_own(nats: NatsServer) -> None:
    async with running_node(nats, "node-whb", heartbeat_interval=0.3) as node:
        author = await node.session()
        async with at(node, author.sid) as connection:
            assert (await Socket(connection).until("hb"))[-1] == {"event": "hb"}


async def test_an_orderly_close_in_the_middle_of_a_stream_is_no_error(node: RunningNode) -> None:
    author = await node.session()
    await author.start()
    for code in (1000, 1001):
        async with at(node, author.sid, "?after=0") as connection, asyncio.TaskGroup() as tasks:
            await Socket(connection).until("caught_up")
            tasks.create_task(author.tokens(30))
            await Socket(connection).until("token")
            await connection.send(json.dumps({"event": "cancel", "data": {"request_id": "r", "generation_id": "none"}}))
            await connection.close(code)
    await until(lambda: _gone(node), "the subscribers are gone")


async def _gone(node: RunningNode) -> bool:
    metrics = (await node.http.get("/metrics")).text.splitlines()
    return 'okome_node_subscribers{transport="ws"} 0.0' in metrics


async def test_a_deleted_session_and_a_drained_node_close_with_codes_that_say_so(nats: NatsServer) -> None:
    async with running_node(nats, "node-end") as node:
        author = await node.session()
        async with at(node, author.sid) as connection:
            socket = Socket(connection)
            await socket.until("caught_up")
            said = json.dumps({"sid": author.sid, "reason": "deleted"}).encode()
            await node.bus.publish("node.all.ended", said)
            events, code = await socket.end()
            assert ([(e["event"], e["data"]["code"]) for e in events], code) == ([("closed", "token_revoked")], 4401)
        async with at(node, author.sid) as connection:
            socket = Socket(connection)
            await socket.until("caught_up")
            node.stop.set()
            events, code = await socket.end()
            assert ([e["event"] for e in events], code) == (["reconnect"], 1012)
            assert set(events[0]["data"]) == {"cursor", "after_ms"}


async def test_a_token_shown_later_is_the_one_that_counts(node: RunningNode) -> None:
    """The page refreshes its token on the open connection; the old one's revocation does not end it then."""
    author = await node.session()
    old = node.token(author.sid)
    async with at(node, author.sid, offered=["okome.v1", f"bearer.{old}"]) as connection:
        socket = Socket(connection)
        await socket.until("caught_up")
        await socket.say("auth", token=node.token(author.sid))
        await socket.say("ping")
        await socket.until("pong")
        jti = json.loads(_payload(old))["jti"]
        await Bucket(node.bus, "revoked").put(f"jti.{jti}", encode(Revocation(now_ms(), "old")))
        await author.answer(1)
        await socket.until("done")
        await socket.say("auth", token=old)
        assert (await socket.end())[1] == 4401


def _payload(token: str) -> bytes:
    part = token.split(".")[1]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_generate_is_accepted_once_however_often_it_is_sent(plane: Plane) -> None:
    """request_id and Idempotency-Key are one namespace: on this connection, on another, over HTTP."""
    made = await plane.session()
    sid = made["session_id"]
    offered = ["okome.v1", f"bearer.{made['token']}"]
    async with at(plane.node, sid, offered=offered) as one, at(plane.node, sid, offered=offered) as two:
        answers = []
        for connection in (one, one, two):
            socket = Socket(connection)
            await socket.say("generate", request_id="r1", prompt="hi")
            answers.append((await socket.until("accepted", "rejected"))[-1])
        assert answers[0]["event"] == "accepted", answers
        assert answers[0]["data"]["request_id"] == "r1"
        assert answers == [answers[0]] * 3
        path = f"/v1/sessions/{sid}/generations"
        headers = {"authorization": f"Bearer {made['token']}", "idempotency-key": "r1"}
        again = await plane.http.post(path, json={"prompt": "hi"}, headers=headers)
        assert again.status_code == 202
        assert again.json()["generation_id"] == answers[0]["data"]["generation_id"]
        assert await plane.jobs() == 1
        await Socket(one).say("generate", request_id="r1", prompt="something else")
        said = (await Socket(one).until("accepted", "rejected"))[-1]
        assert (said["event"], said["data"]["error"]["code"]) == ("rejected", "idempotency_mismatch")
        await Socket(one).say("generate", request_id="r2", prompt="hi")
        said = (await Socket(one).until("accepted", "rejected"))[-1]
        assert said["data"]["error"]["code"] == "generation_running"
        assert (said["data"]["request_id"], said["data"]["error"]["status"]) == ("r2", 409)


async def test_cancel_is_durable_and_idempotent_and_wrong_requests_name_the_field(plane: Plane) -> None:
    made = await plane.session()
    sid = made["session_id"]
    async with at(plane.node, sid, offered=["okome.v1", f"bearer.{made['token']}"]) as connection:
        socket = Socket(connection)
        await socket.say("generate", request_id="r1", prompt="hi")
        gid = (await socket.until("accepted"))[-1]["data"]["generation_id"]
        for name in ("c1", "c2"):
            await socket.say("cancel", request_id=name, generation_id=gid)
            said = (await socket.until("accepted", "rejected"))[-1]
            assert (said["event"], said["data"]["generation_id"]) == ("accepted", gid)
        record = await generation_record(plane.bus, sid, gid)
        assert record is not None
        assert record.cancel
        wrong: list[tuple[dict[str, Any], str, str]] = [
            ({"prompt": 7}, "prompt", "malformed"),
            ({}, "prompt", "malformed"),
            ({"prompt": "x", "tools": [{}]}, "tools", "unsupported"),
        ]
        for body, param, code in wrong:
            await socket.say("generate", request_id=f"bad{param}{code}{len(body)}", **body)
            error = (await socket.until("rejected"))[-1]["data"]["error"]
            assert (error["code"], error["param"]) == (code, param)
        await socket.say("cancel", request_id="c3", generation_id="gnone")
        assert (await socket.until("rejected"))[-1]["data"]["error"]["code"] == "unknown_generation"


async def test_a_token_that_may_only_read_asks_for_nothing(node: RunningNode) -> None:
    author = await node.session()
    async with at(
        node, author.sid, offered=["okome.v1", f"bearer.{node.token(author.sid, scope='read')}"]
    ) as connection:
        socket = Socket(connection)
        await socket.say("generate", request_id="r", prompt="x")
        assert (await socket.until("rejected"))[-1]["data"]["error"]["code"] == "forbidden"


async def test_without_okome_a_request_is_rejected_with_a_time_and_the_stream_goes_on(node: RunningNode) -> None:
    author = await node.session()
    async with at(node, author.sid) as connection:
        socket = Socket(connection)
        await socket.say("generate", request_id="r", prompt="x")
        error = (await socket.until("rejected"))[-1]["data"]["error"]
        assert (error["code"], error["status"]) == ("unavailable", 503)
        assert error["retry_after_ms"] > 0
        await author.answer(1)
        await socket.until("done")


async def test_too_many_requests_at_once_are_4429(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    author = await node.session()
    hold = asyncio.Event()

    async def slow(*args: Any) -> None:
        await hold.wait()

    monkeypatch.setattr(Operations, "cancel", slow)
    async with at(node, author.sid) as connection:
        socket = Socket(connection)
        for number in range(ws_module.MAX_REQUESTS + 1):
            await socket.say("cancel", request_id=f"r{number}", generation_id="g")
        said, code = await socket.end()
        assert (said[-1]["event"], said[-1]["data"]["code"], code) == ("closed", "rate_limited", 4429)
        assert said[-1]["data"]["retry_after_ms"] > 0
    hold.set()


async def test_another_path_is_no_websocket(node: RunningNode) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{node.url.replace('http', 'ws')}/v1/sessions", proxy=None):
            pass
    assert refused.value.response.status_code == 403

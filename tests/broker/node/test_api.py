"""API: every mistake has the status, code and field of api.md, in one shape; and nothing is written to any stream."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from broker.bus.clock import now_ms
from broker.bus.credentials import digest, new_api_key
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.records import ApiKey, Generation, Message, Request, Revocation, Status, encode
from broker.node.operations import Operations
from tests.broker.node.conftest import Plane
from tests.control.okome import generation_record, until
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import TENANT, Author, RunningNode, running_node

MIB = 1024 * 1024
MESSAGES = [{"role": "user", "content": "hi"}]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The one shape of every error."""
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("application/json", "no-store")
    body: dict[str, Any] = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert {"code", "message", "request_id"} <= set(error) <= {"code", "message", "request_id", "param"}
    assert error["request_id"] == answer.headers["x-request-id"]
    for leak in ("Traceback", "pydantic", "127.0.0.1", "nats://", "$JS", "TOK_"):
        assert leak not in answer.text
    return error


# what is sent as the body of POST …/generations -> status, code, field
WRONG = [
    (b"{", 400, "malformed", None),
    (b"[]", 400, "malformed", None),
    (b'"x"', 400, "malformed", None),
    (b"\xff\xfe", 400, "malformed", None),
    (b'{"prompt": "\\ud800"}', 400, "malformed", None),
    (b"[" * 10_000, 400, "malformed", None),
    ({}, 400, "malformed", "prompt"),
    ({"prompt": 7}, 400, "malformed", "prompt"),
    ({"prompt": ""}, 400, "malformed", "prompt"),
    ({"prompt": None}, 400, "malformed", "prompt"),
    ({"prompt": "x", "messages": MESSAGES}, 400, "malformed", "prompt"),
    ({"messages": []}, 400, "malformed", "messages"),
    ({"messages": "x"}, 400, "malformed", "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, 400, "malformed", "messages.0.role"),
    ({"messages": [{"role": "user"}]}, 400, "malformed", "messages.0.content"),
    ({"messages": [{"role": "user", "content": 7}]}, 400, "malformed", "messages.0.content"),
    ({"prompt": "x", "max_tokens": 0}, 400, "malformed", "max_tokens"),
    ({"prompt": "x", "max_tokens": "9"}, 400, "malformed", "max_tokens"),
    ({"prompt": "x", "max_tokens": 1.5}, 400, "malformed", "max_tokens"),
    ({"prompt": "x", "temperature": "hot"}, 400, "malformed", "temperature"),
    ({"prompt": "x", "temperature": True}, 400, "malformed", "temperature"),
    ({"prompt": "x", "temperature": 3}, 400, "malformed", "temperature"),
    ({"prompt": "x", "temperature": 10**400}, 400, "malformed", "temperature"),
    ({"prompt": "x", "stop": [""]}, 400, "malformed", "stop"),
    ({"prompt": "x", "stop": ["x"] * 17}, 400, "malformed", "stop"),
    ({"prompt": "x", "stop": 7}, 400, "malformed", "stop"),
    ({"prompt": "x", "seed": -1}, 400, "malformed", "seed"),
    ({"prompt": "x", "seed": 2**63}, 400, "malformed", "seed"),
    ({"prompt": "x", "drafts": "yes"}, 400, "malformed", "drafts"),
    ({"prompt": "x", "model": 7}, 400, "malformed", "model"),
    ({"prompt": "x", "tools": [{}]}, 422, "unsupported", "tools"),
    ({"prompt": "x", "drafts": True}, 422, "unsupported", "drafts"),
    ({"prompt": "x", "model": "nobody"}, 422, "unknown_model", "model"),
    ({"prompt": "x", "model": "a.b *>\u00e9"}, 422, "unknown_model", "model"),
    ({"prompt": "x" * MIB}, 413, "too_large", None),
]


async def test_every_wrong_body_is_refused_by_name_and_nothing_is_written(plane: Plane) -> None:
    made = await plane.session()
    path = f"/v1/sessions/{made['session_id']}/generations"
    headers = {"authorization": f"Bearer {made['token']}", "content-type": "application/json"}
    before = await plane.written()
    for body, status, code, param in WRONG:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await plane.http.post(path, content=content, headers=headers)
        error = error_of(answer)
        assert (answer.status_code, error["code"], error.get("param")) == (status, code, param), content[:80]
    assert await plane.written() == before


async def test_every_wrong_address_and_credential_is_refused_and_nothing_is_written(plane: Plane) -> None:
    made = await plane.session()
    sid = made["session_id"]
    node = plane.node
    mine = {"authorization": f"Bearer {made['token']}"}
    stranger = new_api_key()
    await Bucket(plane.bus, "keys").put(digest(stranger), encode(ApiKey("key2", "other", "test", now_ms())))
    await until(lambda: knows(node, stranger), "the node knows the other tenant's key")
    theirs = {"authorization": f"Bearer {stranger}"}
    session, body = f"/v1/sessions/{sid}", {"prompt": "x"}
    before = await plane.written()
    for method, path, headers, status, code in [
        ("POST", "/v1/sessions/a.b*c/generations", mine, 400, "malformed"),
        ("GET", "/v1/sessions/%E2%82%AC%00xxxxxxxx", mine, 400, "malformed"),
        ("GET", f"/v1/sessions/{'x' * 65}", mine, 400, "malformed"),
        ("POST", f"{session}/generations", {}, 401, "unauthenticated"),
        ("POST", f"{session}/generations", {"authorization": "Basic eHg="}, 401, "unauthenticated"),
        ("POST", f"{session}/generations", {"authorization": "Bearer ok_nobody"}, 401, "unauthenticated"),
        ("POST", f"{session}/generations", node.bearer(sid, life=-100), 401, "token_expired"),
        (
            "POST",
            f"{session}/generations",
            {"authorization": mine["authorization"][:-4] + "AAAA"},
            401,
            "unauthenticated",
        ),
        ("POST", f"{session}/generations", node.bearer("00" + "z" * 20), 403, "forbidden"),
        ("POST", f"{session}/generations", node.bearer(sid, scope="read"), 403, "forbidden"),
        ("DELETE", session, node.bearer(sid, scope="read"), 403, "forbidden"),
        ("POST", f"{session}/generations", theirs, 404, "unknown_session"),
        ("GET", session, theirs, 404, "unknown_session"),
        ("DELETE", session, theirs, 404, "unknown_session"),
        ("GET", f"{session}/messages", theirs, 404, "unknown_session"),
        ("GET", f"{session}/events", theirs, 404, "unknown_session"),
        ("POST", f"{session}/token", theirs, 404, "unknown_session"),
        ("POST", f"{session}/tickets", theirs, 404, "unknown_session"),
        ("GET", f"{session}/generations/gnone", mine, 404, "unknown_generation"),
        ("GET", f"{session}/generations/a.b%3E", mine, 404, "unknown_generation"),
        ("POST", f"{session}/generations/gnone/cancel", mine, 404, "unknown_generation"),
        ("POST", f"{session}/generations/gnone/approve", mine, 422, "unsupported"),
        ("POST", "/v1/embeddings", plane.key, 422, "unsupported"),
        ("POST", "/v1/chat/completions", plane.key, 422, "unsupported"),
        ("POST", "/v1/sessions", mine, 403, "forbidden"),
        ("GET", "/v1/sessions", mine, 403, "forbidden"),
        ("GET", "/v1/sessions?limit=0", plane.key, 400, "malformed"),
        ("GET", "/v1/sessions?limit=x", plane.key, 400, "malformed"),
        ("GET", "/v1/sessions?limit=00000000199999", plane.key, 400, "malformed"),
        ("GET", f"/v1/sessions?limit={'0' * 8}1{'9' * 5000}", plane.key, 400, "malformed"),
        ("POST", f"{session}/generations?wait=9999", mine, 400, "malformed"),
        ("POST", f"{session}/generations", {**mine, "idempotency-key": "k" * 201}, 400, "malformed"),
        ("POST", f"{session}/generations", {**mine, "content-type": "text/plain"}, 400, "malformed"),
        ("POST", f"{session}/generations", {**mine, "content-type": "text/plain; as=json"}, 400, "malformed"),
        ("GET", "/v1/nothing", mine, 404, "not_found"),
        ("GET", "/v1/sessions/", {**plane.key, "host": "evil.test"}, 404, "not_found"),
        ("PUT", session, mine, 405, "method_not_allowed"),
        ("PUT", f"{session}/events", mine, 405, "method_not_allowed"),
        ("POST", f"{session}/ws", mine, 405, "method_not_allowed"),
        ("GET", f"{session}/ws", mine, 426, "malformed"),
        ("GET", f"{session}/events?until=never", mine, 400, "malformed"),
    ]:
        content = json.dumps(body) if method == "POST" else None
        usual = {"x-request-id": "mine-7", "content-type": "application/json"}
        answer = await plane.http.request(method, path, content=content, headers={**usual, **headers})
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (status, code), (method, path, headers)
        assert error["request_id"] == "mine-7"
        if status == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
        assert ("allow" in answer.headers) == (status == 405)
        assert (answer.headers.get("upgrade") == "websocket") == (status == 426)
    assert await plane.written() == before


async def knows(node: RunningNode, key: str) -> bool:
    answer = await node.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    return answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"x": [float("nan")]}}, "metadata"),
        ({"metadata": {"x": float("inf")}}, "metadata"),
        ({"title": "x" * 201}, "title"),
        ({"title": 7}, "title"),
        ({"on_disconnect": "explode"}, "on_disconnect"),
        ({"model": 7}, "model"),
    ],
)
async def test_a_wrong_session_names_its_field(node: RunningNode, body: dict[str, Any], param: str) -> None:
    key = {"authorization": f"Bearer {node.api_key}"}
    content = json.dumps(body)  # with what is no JSON, too
    answer = await node.http.post("/v1/sessions", content=content, headers={**key, "content-type": "application/json"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)


async def test_requests_are_measured_by_the_status_they_got(node: RunningNode) -> None:
    """The label says what it is called."""
    assert (await node.http.get("/v1/models", headers={"authorization": "Bearer nobody"})).status_code == 401
    assert 'okome_node_request_seconds_count{status="401"}' in (await node.http.get("/metrics")).text


async def test_a_mistake_of_ours_has_the_shape_of_every_error_and_tells_nothing(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Operations) -> list[Any]:
        raise RuntimeError("at nats://127.0.0.1")

    monkeypatch.setattr(Operations, "models", broken)
    answer = await node.http.get("/v1/models", headers={"authorization": f"Bearer {node.api_key}"})
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal")


async def test_metadata_too_large_for_the_bus_is_413(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bus, "max_payload", MIB)
    body = {"metadata": {"x": "y" * (MIB - 1000)}}
    answer = await node.http.post("/v1/sessions", json=body, headers={"authorization": f"Bearer {node.api_key}"})
    assert (answer.status_code, error_of(answer)["code"]) == (413, "too_large")


async def test_one_generation_at_a_time_and_one_answer_for_one_key(plane: Plane) -> None:
    made = await plane.session()
    sid = made["session_id"]
    path, mine = f"/v1/sessions/{sid}/generations", {"authorization": f"Bearer {made['token']}"}
    first = await plane.http.post(path, json={"prompt": "hi"}, headers={**mine, "idempotency-key": "k"})
    assert first.status_code == 202
    gid = first.json()["generation_id"]
    assert first.headers["x-okome-generation"] == gid
    written = await plane.written()
    again = await plane.http.post(path, json={"prompt": "hi"}, headers={**mine, "idempotency-key": "k"})
    assert (again.status_code, again.json()) == (202, first.json())
    other = await plane.http.post(path, json={"prompt": "ho"}, headers={**mine, "idempotency-key": "k"})
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_mismatch")
    second = await plane.http.post(path, json={"prompt": "ho"}, headers=mine)
    assert (second.status_code, error_of(second)["code"]) == (409, "generation_running")
    assert await plane.written() == written
    for _ in range(2):
        answer = await plane.http.post(f"{path}/{gid}/cancel", headers=mine)
        assert (answer.status_code, answer.json()["generation_id"]) == (202, gid)
    record = await generation_record(plane.bus, sid, gid)
    assert record is not None
    assert record.cancel


async def test_without_okome_what_is_new_is_503_with_retry_after_and_reading_goes_on(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(2)
    key = {"authorization": f"Bearer {node.api_key}"}
    session = f"/v1/sessions/{author.sid}"
    for method, path, body in [
        ("POST", "/v1/sessions", {}),
        ("POST", f"{session}/generations", {"prompt": "x"}),
        ("POST", f"{session}/token", {}),
        ("POST", f"{session}/tickets", {}),
        ("PATCH", session, {"title": "x"}),
        ("DELETE", session, None),
        ("POST", "/v1/login", {"api_key": "x"}),
    ]:
        answer = await node.http.request(method, path, json=body, headers=key)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "unavailable"), path
        assert int(answer.headers["retry-after"]) >= 1
    messages = (await node.http.get(f"{session}/messages", headers=key)).json()
    assert [message["content"] for message in messages["messages"]] == ["hello", "0 1 "]
    assert messages["cursor"] == f"{await node.incarnation()}-{author.seqs[-1]}"
    assert (await node.http.get("/v1/models", headers=key)).status_code == 200
    async with node.events(author.sid, after="0") as events:
        assert [event["data"] for event in await events.until("done")][1:] == author.data


async def test_a_post_is_answered_whole_with_wait(plane: Plane) -> None:
    made = await plane.session()
    sid = made["session_id"]
    author = Author(plane.bus, sid)
    headers = {"authorization": f"Bearer {made['token']}"}
    async with asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(
            plane.http.post(f"/v1/sessions/{sid}/generations?wait=20", json={"prompt": "hi"}, headers=headers)
        )
        await until(plane.jobs, "the job is queued")
        (waiting,) = await generations(plane, sid)
        author.gid = gid = waiting["id"]
        assert waiting["status"] == "queued"
        await author.start(gid=gid)
        await author.tokens(3)
        assert [one["status"] for one in await generations(plane, sid)] == ["running"]
        cancel = await plane.http.post(f"/v1/sessions/{sid}/generations/{gid}/cancel", headers=headers)
        assert (cancel.status_code, cancel.json()["status"]) == (202, "running")
        await author.done()
    answer = answering.result()
    assert answer.status_code == 200
    said = answer.json()
    assert (said["generation_id"], said["status"], said["text"]) == (gid, "done", "0 1 2 ")


async def two_answers(plane: Plane, made: dict[str, Any]) -> Author:
    """One that has ended, asked for under the key `first`; and one that runs."""
    path = f"/v1/sessions/{made['session_id']}/generations"
    headers = {"authorization": f"Bearer {made['token']}", "idempotency-key": "first"}
    author = Author(plane.bus, made["session_id"])
    first = await plane.http.post(path, json={"prompt": "hi"}, headers=headers)
    await author.start(gid=first.json()["generation_id"])
    await author.tokens(2)
    await author.done()

    async def second() -> str:
        answer = await plane.http.post(path, json={"prompt": "more"}, headers={**headers, "idempotency-key": "second"})
        return str(answer.json().get("generation_id", ""))

    await author.start(gid=await until(second, "OKOME has seen the first one's end"))
    await author.tokens(1)
    return author


async def test_who_waits_for_an_answer_that_has_ended_does_not_wait_for_the_next_one(plane: Plane) -> None:
    """A repeat under the same key, while something else runs."""
    made = await plane.session()
    author = await two_answers(plane, made)
    path = f"/v1/sessions/{made['session_id']}/generations"
    headers = {"authorization": f"Bearer {made['token']}", "idempotency-key": "first"}
    async with asyncio.timeout(10):
        waited = await plane.http.post(f"{path}?wait=60", json={"prompt": "hi"}, headers=headers)
        assert (waited.status_code, waited.json()["status"], waited.json()["text"]) == (200, "done", "0 1 ")
        headers["accept"] = "text/event-stream"
        streamed = await plane.http.post(path, json={"prompt": "hi"}, headers=headers)
    assert waited.json()["generation_id"] == streamed.headers["x-okome-generation"] != author.gid
    assert author.gid not in streamed.text
    names = [line.removeprefix("event: ") for line in streamed.text.splitlines() if line.startswith("event: ")]
    assert names == ["hello", "start", "token", "token", "done"]


@pytest.mark.parametrize(
    ("why", "status", "code"), [("the node leaves", 503, "unavailable"), ("revoked", 401, "token_revoked")]
)
async def test_who_cannot_wait_to_the_end_is_told_so_and_for_what(
    plane: Plane, why: str, status: int, code: str
) -> None:
    """An answer that still runs, before the time is over, would be a wrong one."""
    made = await plane.session()
    sid = made["session_id"]
    author = Author(plane.bus, sid)
    headers = {"authorization": f"Bearer {made['token']}"}
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(
            plane.http.post(f"/v1/sessions/{sid}/generations?wait=20", json={"prompt": "hi"}, headers=headers)
        )
        await until(plane.jobs, "the job is queued")
        (queued,) = await generations(plane, sid)
        await author.start(gid=queued["id"])
        await until(lambda: watched(plane), "it waits")
        if why == "revoked":
            await Bucket(plane.bus, "revoked").put(f"sid.{sid}", encode(Revocation(now_ms(), "test")))
        else:
            plane.node.stop.set()
    answer = waiting.result()
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert answer.headers["x-okome-generation"] == queued["id"]
    assert ("retry-after" in answer.headers) == (status == 503)


async def watched(plane: Plane) -> bool:
    return 'okome_node_subscribers{transport="sse"} 1.0' in (await plane.http.get("/metrics")).text


async def generations(plane: Plane, sid: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await plane.http.get(f"/v1/sessions/{sid}", headers=plane.key)).json()["generations"]
    return found


async def test_that_a_text_is_not_whole_is_said_with_it(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(2)
    gid = author.gid
    record = Generation(
        gid,
        author.sid,
        TENANT,
        Request("m", [Message("user", "hello")]),
        created_at=1,
        after=0,
        status=Status.DONE,
        first_seq=author.seqs[0],
        last_seq=author.seqs[-1],
        text="0",
        truncated=True,
    )
    await Bucket(node.bus, "generations").put(f"{author.sid}.{gid}", encode(record))
    key = {"authorization": f"Bearer {node.api_key}"}
    path = f"/v1/sessions/{author.sid}"
    asked, said = (await node.http.get(f"{path}/messages", headers=key)).json()["messages"]
    assert (said["content"], said["truncated"]) == ("0", True)
    assert "truncated" not in asked
    told = (await node.http.get(f"{path}/generations/{gid}", headers=key)).json()
    assert (told["text"], told["truncated"]) == ("0", True)
    async with node.events(author.sid) as events:
        *_, answer, _ = await events.until("caught_up")
        assert json.loads(answer["data"])["truncated"] is True


async def test_why_an_answer_failed_is_said_to_whoever_comes_later(node: RunningNode) -> None:
    author = await node.session()
    await author.start()
    await author.tokens(2)
    await author.failed("context_length_exceeded", "too long")
    key = {"authorization": f"Bearer {node.api_key}"}
    path = f"/v1/sessions/{author.sid}"
    said = (await node.http.get(f"{path}/messages", headers=key)).json()["messages"][-1]
    why = {"code": "context_length_exceeded", "message": "too long"}
    assert (said["status"], said["error"]) == ("failed", why)
    async with node.events(author.sid) as events:
        *_, answer, _ = await events.until("caught_up")
        assert json.loads(answer["data"])["error"] == why


async def test_a_record_that_cannot_be_read_hides_no_other(plane: Plane) -> None:
    sid = (await plane.session())["session_id"]
    await Bucket(plane.bus, "sessions").put("acme.zzzzzzzz", b"junk")
    await Bucket(plane.bus, "models").put("zz", b"junk")
    listed = await plane.http.get("/v1/sessions", headers=plane.key)
    assert [session["id"] for session in listed.json()["sessions"]] == [sid]
    models = await plane.http.get("/v1/models", headers=plane.key)
    assert models.status_code == 200
    assert models.json()["data"]


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    at = urlsplit(node.url)
    with socket.create_connection((at.hostname, at.port)) as half:
        head = (
            f"POST /v1/sessions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {node.api_key}\r\ncontent-length: 99\r\n"
        )
        half.sendall(head.encode() + b'\r\n{"ti')
        await until(lambda: alive(node), "it has been taken up")
    await until(lambda: alive(node), "it has been given up")
    assert "request_failed" not in capsys.readouterr().out


async def test_a_body_that_does_not_arrive_is_waited_for_so_long_and_no_longer(nats: NatsServer) -> None:
    async with running_node(nats, "node-slow", body_timeout=0.3) as node:
        at = urlsplit(node.url)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        head = f"POST /v1/sessions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {node.api_key}\r\ncontent-length: 9\r\n"
        writer.write(head.encode() + b'\r\n{"ti')
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()


async def alive(node: RunningNode) -> bool:
    return (await node.http.get("/livez")).status_code == 200


async def test_sessions_are_listed_newest_first_in_pages_and_patched(plane: Plane) -> None:
    made = [(await plane.session(title=f"t{number}"))["session_id"] for number in range(3)]
    page = (await plane.http.get("/v1/sessions?limit=2", headers=plane.key)).json()["sessions"]
    assert [session["id"] for session in page] == made[:0:-1]
    rest = (await plane.http.get(f"/v1/sessions?before={page[-1]['id']}", headers=plane.key)).json()["sessions"]
    assert [session["title"] for session in rest] == ["t0"]
    answer = await plane.http.patch(f"/v1/sessions/{made[0]}", json={"title": "new"}, headers=plane.key)
    assert (answer.status_code, answer.json()["title"]) == (200, "new")


async def test_a_deleted_session_is_gone_and_its_streams_end_within_a_second(plane: Plane) -> None:
    made = await plane.session()
    sid = made["session_id"]
    headers = {"authorization": f"Bearer {made['token']}"}
    async with plane.node.events(sid, headers=headers) as events:
        await events.until("caught_up")
        answer = await plane.http.delete(f"/v1/sessions/{sid}", headers=plane.key)
        assert (answer.status_code, answer.headers["cache-control"]) == (204, "no-store")
        (closed,) = await events.rest(timeout=1)
        assert json.loads(closed["data"])["code"] == "token_revoked"
    await until(lambda: refused(plane, sid, headers), "the node has heard of the revocation, too")
    answer = await plane.http.get(f"/v1/sessions/{sid}", headers=plane.key)
    assert answer.status_code in (401, 404)


async def refused(plane: Plane, sid: str, headers: dict[str, str]) -> bool:
    """Whether a new stream is refused for a revoked token."""
    async with plane.http.stream("GET", f"/v1/sessions/{sid}/events", headers=headers) as answer:
        if answer.status_code != 401:
            return False
        await answer.aread()
        return bool(error_of(answer)["code"] == "token_revoked")

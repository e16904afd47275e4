"""A session is readable only with its token; another session's token gets 403, whatever way it comes in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from broker.bus.clock import now_ms
from broker.bus.credentials import SigningKey, digest, internal_key, new_api_key, new_internal_key, seal
from broker.bus.frames import json_encode
from broker.bus.kv import Bucket
from broker.bus.records import ApiKey, Revocation, encode
from tests.fixtures.node import Author, Events, RunningNode

DEADLINE = 10.0
CASES = {
    "of another session": (403, "forbidden", 4403),
    "expired": (401, "token_expired", 4401),
    "revoked": (401, "token_revoked", 4401),
    "forged": (401, "unauthenticated", 4401),
    "for another audience": (401, "unauthenticated", 4401),
}


async def token_of(case: str, node: RunningNode, author: Author) -> str:
    match case:
        case "of another session":
            return node.token((await node.session()).sid)
        case "expired":
            return node.token(author.sid, life=-3600)
        case "forged":
            forger = SigningKey(node.signing.kid, SigningKey.generate().private)
            return forger.session("acme", "key1", author.sid, "write", "finish", 600)[0]
        case "for another audience":
            return node.signing.login("acme", "key1", 600)[0]
    await Bucket(node.bus, "revoked").put(f"sid.{author.sid}", encode(Revocation(now_ms(), "test")))
    return node.token(author.sid)


@pytest.mark.parametrize("case", CASES)
async def test_a_token_that_does_not_open_this_session_opens_nothing_of_it(node: RunningNode, case: str) -> None:
    status, code, close = CASES[case]
    author = await node.session()
    await author.answer(3)
    headers = {"authorization": f"Bearer {await token_of(case, node, author)}"}
    base = f"/v1/sessions/{author.sid}"
    async with asyncio.timeout(DEADLINE):
        while True:  # a revocation needs a moment to be heard
            refused = await node.http.get(f"{base}/generations/{author.gid}", headers=headers)
            if case != "revoked" or refused.status_code == 401:
                break
    for path in (f"{base}/events?after=0", base, f"{base}/messages", f"{base}/generations/{author.gid}"):
        answer = await node.http.get(path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), path
    for verb, path in (("POST", f"{base}/generations/{author.gid}/cancel"), ("DELETE", base)):
        answer = await node.http.request(verb, path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), path
    said, closed = await over_websocket(node, author.sid, headers)
    assert closed == close
    assert not [message for message in said if "generation_id" in message]


async def over_websocket(node: RunningNode, sid: str, headers: dict[str, str]) -> tuple[list[str], int]:
    """All that it is told, and the code it is closed with."""
    url = node.url.replace("http", "ws") + f"/v1/sessions/{sid}/ws?after=0"
    async with asyncio.timeout(DEADLINE), connect(url, additional_headers=headers) as socket:
        said = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                said.append(str(await socket.recv()))
        return said, socket.close_code or 0


async def test_a_token_that_may_only_read_does_not_write(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(3)
    headers = node.bearer(author.sid, scope="read")
    async with node.events(author.sid, headers=headers, after="0") as events:
        assert (await events.until("done"))[-1]["data"] == author.data[-1]
    for verb, path in (("POST", f"/generations/{author.gid}/cancel"), ("DELETE", ""), ("PATCH", "")):
        answer = await node.http.request(verb, f"/v1/sessions/{author.sid}{path}", headers=headers, json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), (verb, path)


async def test_another_tenants_session_does_not_exist_for_its_key(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(3)
    key = new_api_key()
    await Bucket(node.bus, "keys").put(digest(key), encode(ApiKey("key2", "rival", "test", now_ms())))
    headers = {"authorization": f"Bearer {key}"}
    async with asyncio.timeout(DEADLINE):
        while (await node.http.get("/v1/sessions", headers=headers)).status_code == 401:  # noqa: ASYNC110 - it is told nobody
            await asyncio.sleep(0.02)
    assert (await node.http.get("/v1/sessions", headers=headers)).json()["sessions"] == []
    for path in ("/events?after=0", "", "/messages"):
        answer = await node.http.get(f"/v1/sessions/{author.sid}{path}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_session"), path
    own = {"authorization": f"Bearer {node.api_key}"}
    assert (await node.http.get(f"/v1/sessions/{author.sid}", headers=own)).status_code == 200


async def test_an_admission_opens_a_stream_only_from_an_ingress_and_only_its_own(node: RunningNode) -> None:
    """What splices rest on: believed beside an ingress's word, sealed under the internal key, for one session."""
    author, other = await node.session(), await node.session()
    await author.answer(3)
    key = node.internal
    strangers = internal_key(json_encode({"key": new_internal_key()}))
    word = {"ingress": "i", "proto": "http", "loopback": False, "ip": "1.2.3.4", "t": now_ms()}
    who = {"tenant": "acme", "subject": "key1", "scope": "read", "t": now_ms()}
    relay, admission = seal(key, word, purpose="relay"), seal(key, who | {"sid": author.sid}, purpose="admission")
    attempts = {
        "both": (author.sid, relay, admission, 200),
        "no ingress": (author.sid, "", admission, 401),
        "a stranger's word": (author.sid, seal(strangers, word, purpose="relay"), admission, 401),
        "an old word": (author.sid, seal(key, word | {"t": now_ms() - 60_000}, purpose="relay"), admission, 401),
        "a stranger's admission": (
            author.sid,
            relay,
            seal(strangers, who | {"sid": author.sid}, purpose="admission"),
            401,
        ),
        "a word as admission": (author.sid, relay, seal(key, who | {"sid": author.sid}, purpose="relay"), 401),
        "another session's": (other.sid, relay, admission, 401),
    }
    for name, (sid, said, shown, status) in attempts.items():
        headers = {"x-okome-admission": shown, **({"x-okome-relay": said} if said else {})}
        async with node.http.stream("GET", f"/v1/sessions/{sid}/events?after=0", headers=headers) as answer:
            assert answer.status_code == status, name


async def test_a_cookie_does_not_count_beside_an_authorization_of_another_kind(node: RunningNode) -> None:
    author = await node.session()
    path = f"/v1/sessions/{author.sid}/messages"
    with_cookie = {"cookie": f"okome_s={node.token(author.sid)}", "origin": node.url}
    assert (await node.http.get(path, headers=with_cookie)).status_code == 200
    headers = {**with_cookie, "authorization": "Basic eHg6eA=="}
    answer = await node.http.get(path, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")
    assert await over_websocket(node, author.sid, headers) == ([], 4401)


async def test_a_later_leg_begins_with_an_expired_token_and_is_ended_in_words(node: RunningNode) -> None:
    """A splice fails nobody, and makes nobody's token last."""
    author = await node.session()
    await author.answer(3)
    long_ago = int(time.time()) - 3600
    who = {"tenant": "acme", "subject": "key1", "sid": author.sid, "scope": "read", "expires_at": long_ago}
    word = {"ingress": "i", "proto": "http", "loopback": False, "ip": "1.2.3.4"}
    headers = {
        "x-okome-relay": seal(node.internal, word, purpose="relay"),
        "x-okome-admission": seal(node.internal, who, purpose="admission"),
    }
    async with node.http.stream("GET", f"/v1/sessions/{author.sid}/events?after=0", headers=headers) as answer:
        events = Events(answer)
        (hello,) = await events.until("hello")
        *_, closed = await events.rest()
    assert answer.status_code == 200
    assert hello["id"]
    assert (closed["event"], json.loads(closed["data"])["code"]) == ("closed", "token_expired")

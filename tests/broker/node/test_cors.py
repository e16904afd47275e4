"""CORS: pages of allowed origins may ask and read; nobody else is told that they may."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import RunningNode, running_node

FRIEND, STRANGER = "https://friend.example", "https://evil.example"
ALLOW = "access-control-allow-origin"


@pytest.fixture
async def open_node(nats: NatsServer) -> AsyncIterator[RunningNode]:
    async with running_node(nats, "node-cors", cors_origins=f"{FRIEND}/, https://other.example") as node:
        yield node


async def test_a_preflight_of_an_allowed_origin_names_what_it_may_send(open_node: RunningNode) -> None:
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, idempotency-key, last-event-id",
    }
    for path in ("/v1/sessions", "/v1/sessions/00aaaaaaaaaa/events", "/v1/nothing"):
        answer = await open_node.http.options(path, headers={"origin": FRIEND, **asked})
        assert answer.status_code == 204
        assert (answer.headers[ALLOW], answer.headers["access-control-allow-credentials"]) == (FRIEND, "true")
        allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
        assert {"authorization", "content-type", "idempotency-key", "last-event-id"} <= allowed
        assert {"POST", "PATCH", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
        assert answer.headers["vary"] == "Origin"
        stranger = await open_node.http.options(path, headers={"origin": STRANGER, **asked})
        assert ALLOW not in stranger.headers


async def test_the_client_may_be_imported_by_any_page_and_the_chat_page_not_be_read(open_node: RunningNode) -> None:
    for origin in (FRIEND, STRANGER):
        client = await open_node.http.get("/web/okome.js", headers={"origin": origin})
        again = await open_node.http.get("/web/okome.js", headers={"if-none-match": client.headers["etag"]})
        assert (client.status_code, again.status_code) == (200, 304)
        assert [answer.headers.get_list(ALLOW) for answer in (client, again)] == [["*"], ["*"]]
        for path in ("/", "/c/00aaaaaaaaaaaaaaaaaaaa"):
            page = await open_node.http.get(path, headers={"origin": origin})
            assert (page.status_code, ALLOW in page.headers) == (200, False)


async def test_answers_streams_and_refusals_can_be_read_by_friends_only(open_node: RunningNode) -> None:
    author = await open_node.session()
    for origin, told in ((FRIEND, FRIEND), (STRANGER, None), ("null", None)):
        for path in ("/v1/models", f"/v1/sessions/{author.sid}/messages", "/v1/nothing"):
            for headers in ({}, open_node.bearer(author.sid)):
                answer = await open_node.http.get(path, headers={"origin": origin, **headers})
                assert answer.headers.get(ALLOW) == told, (path, answer.status_code)
        async with open_node.events(author.sid, headers={"origin": origin}) as events:
            assert events.response.headers.get(ALLOW) == told
    answer = await open_node.http.get("/v1/models", headers={"origin": FRIEND})
    exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert {"retry-after", "x-okome-session", "x-okome-generation"} <= exposed

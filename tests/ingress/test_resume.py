"""What a client of a WebSocket asks for anew, and what a later leg is asked for then."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ingress.socket_leg import Dialogue
from tests.ingress.conftest import expected
from tests.ingress.fake_node import FakeNode, Log
from tests.ingress.socket_viewer import viewer

Make = Callable[..., Any]

FROM_2 = ["hello", "served_by", "token", "token", "token", "caught_up"]
"""What is told of a log of five tokens from the second one on."""


@pytest.fixture(params=[False, True], ids=["own", "shared"])
def multiplex(request: pytest.FixtureRequest) -> bool:
    """Whether a leg is a connection of its own, or one stream of many."""
    return bool(request.param)


def in_turn(*nodes: FakeNode) -> list[FakeNode]:
    """The one that serves, then the others."""
    return sorted(nodes, key=lambda node: not node.legs)


@pytest.mark.parametrize(
    ("query", "headers", "seen"),
    [("", {"last-event-id": "inc0-2"}, 4), ("after=inc0-2", {}, 4), ("after=0", {}, 6), ("", {}, 6)],
)
async def test_a_later_leg_goes_on_behind_the_last_event_wherever_the_first_began(
    node: Make, ingress: Make, log: Log, query: str, headers: dict[str, str], seen: int
) -> None:
    nodes = [await node(name) for name in ("node-a", "node-b")]
    relay = await ingress(*nodes)
    log.tokens(0, 6)
    async with viewer(relay, query, additional_headers=headers) as client:
        await client.until("caught_up")
        first, second = in_turn(*nodes)
        await first.stop()
        log.tokens(6, 3)
        await client.tokens(seen + 3)
    assert client.transcript == expected(9)[-len(client.transcript) :]
    assert second.seen[0].query["after"] == "inc0-6"
    assert "last-event-id" not in second.seen[0].headers


@pytest.mark.parametrize("opened", [False, True])
async def test_what_is_asked_for_while_no_node_serves_is_told_once(
    node: Make, ingress: Make, log: Log, opened: bool, multiplex: bool
) -> None:
    """`opened`: the next leg was asked for already, from where the client was before."""
    a, b = await node("node-a"), await node("node-b")
    answers = b.begins if multiplex else b.upgrades
    relay = await ingress(a)
    log.tokens(0, 5)
    async with viewer(relay) as client:
        await client.until("caught_up")
        answers.clear()
        if opened:
            await relay.know(b)
        await a.stop()
        if opened:
            await relay.settled(lambda: bool(b.seen))
        told = len(client.messages)
        await client.say("resume", after="inc0-2")
        await (await client.socket.ping())  # so that it has been read
        answers.set()
        await relay.know(b)
        await client.until("caught_up")
        assert client.names[told:] == FROM_2
        assert client.messages[-2]["id"] == "inc0-5"
        log.tokens(5, 1)
        assert (await client.until("token"))["id"] == "inc0-6"


async def test_what_is_asked_for_before_the_first_stream_begins_is_told_instead(
    node: Make, ingress: Make, log: Log
) -> None:
    a = await node("node-a")
    a.begins.clear()
    relay = await ingress(a)
    log.tokens(0, 5)
    async with viewer(relay) as client:
        await client.say("resume", after="inc0-3")
        await client.say("resume", after="inc0-2")
        await (await client.socket.ping())
        a.begins.set()
        await client.until("caught_up")
        assert client.names == FROM_2
        assert client.messages[0]["id"] == "inc0-2"
        assert [json.loads(text)["data"]["after"] for text in a.messages] == ["inc0-2"]
        log.tokens(5, 1)
        assert (await client.until("token"))["id"] == "inc0-6"


async def test_a_stream_that_runs_is_told_anew_from_its_beginning(node: Make, ingress: Make, log: Log) -> None:
    nodes = [await node(name) for name in ("node-a", "node-b")]
    relay = await ingress(*nodes)
    log.tokens(0, 5)
    async with viewer(relay) as client:
        await client.until("caught_up")
        told = len(client.messages)
        await client.say("resume", after="inc0-2")
        await client.until("caught_up")
        assert client.names[told:] == FROM_2
        first, second = in_turn(*nodes)
        await first.stop()
        log.tokens(5, 1)
        assert (await client.until("token"))["id"] == "inc0-6"
        assert second.seen[0].query["after"] == "inc0-5"
        assert second.messages == []


def message(event: str, id: str = "", **data: str) -> bytes:
    return json.dumps({"event": event, **({"id": id} if id else {}), "data": data}).encode()


def test_what_was_asked_for_is_not_forgotten_where_its_leg_is_lost() -> None:
    """And what still came of the stream before it is not where it goes on."""
    dialogue = Dialogue()
    dialogue.opening()
    dialogue.from_node(message("hello", "i-900"))
    dialogue.from_node(message("caught_up"))
    assert dialogue.from_client(message("resume", after="i-5"), leg=True)
    assert dialogue.from_node(message("token", "i-901"))[0]
    assert (dialogue.cursor, dialogue.moving) == ("i-5", True)
    dialogue.opening()
    hello = message("hello", "i-5")
    assert dialogue.from_node(hello)[0] == hello
    assert dialogue.from_node(message("caught_up"))[0]
    assert (dialogue.cursor, dialogue.moving) == ("i-5", False)
    dialogue.opening()
    assert dialogue.from_node(hello)[0] == b"", "of a splice nobody is told"


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
async def test_a_later_auth_counts_from_then_on(node: Make, ingress: Make, first: bool) -> None:
    """`before`: said while a node serves; `after`: while none does."""
    a, b = await node("node-a"), await node("node-b")
    relay = await ingress(a)
    async with viewer(relay, "ticket=spent", additional_headers={"cookie": "okome_s=old"}) as client:
        await client.until("caught_up")
        if first:
            await client.say("auth", token="new")
            await relay.settled(lambda: bool(a.messages))
        await a.stop()
        if not first:
            await client.say("auth", token="new")
            await (await client.socket.ping())
        await relay.know(b)
        await relay.settled(lambda: bool(b.messages))
        (seen,) = b.seen
    assert [json.loads(text)["data"]["token"] for text in b.messages] == ["new"]
    assert not {"authorization", "cookie", "x-okome-admission"} & set(seen.headers)
    assert "ticket" not in seen.query
    assert "bearer" not in seen.headers.get("sec-websocket-protocol", "")


def test_what_is_no_place_to_resume_at_is_the_nodes_to_refuse() -> None:
    dialogue = Dialogue()
    dialogue.opening()
    dialogue.from_node(message("hello", "i-9"))
    for leg in (True, False):
        assert dialogue.from_client(b'{"event":"resume","data":{"after":5}}', leg=leg)
    assert (dialogue.cursor, dialogue.moving) == ("i-9", False)
    assert dialogue.from_client(b'{"event":"resume","data":{"after":null}}', leg=True)
    assert (dialogue.cursor, dialogue.moving) == ("", True)


def test_of_a_stream_that_is_not_told_nothing_is_told() -> None:
    dialogue = Dialogue()
    dialogue.opening()
    dialogue.from_client(message("resume", after="i-5"), leg=True)
    dialogue.from_node(message("hello", "i-9"))
    assert dialogue.next_resume()
    for text in (message("queued"), message("token", "i-10"), message("caught_up")):
        assert dialogue.from_node(text)[0] == b""
    for text in (message("accepted", request_id="r"), message("hello", "i-5"), message("queued")):
        assert dialogue.from_node(text)[0] == text

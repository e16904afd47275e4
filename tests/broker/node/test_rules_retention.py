"""The conversation outlives its log, and a place in a log that has aged out is said to be gone."""

from __future__ import annotations

import json

import pytest

from broker.bus.clock import now_ms
from broker.bus.kv import Bucket
from broker.bus.records import Generation, Message, Request, Status, encode
from broker.bus.subjects import log_subject
from broker.node import subscriber
from tests.broker.node.slow_history import held_back
from tests.fixtures.node import Author, RunningNode


async def record(node: RunningNode, author: Author, text: str) -> None:
    """What OKOME keeps of an answer that has ended."""
    kept = Generation(
        id=author.gid,
        sid=author.sid,
        tenant="acme",
        request=Request("m", [Message("user", "hello")]),
        created_at=now_ms(),
        after=0,
        status=Status.DONE,
        text=text,
        finish_reason="stop",
        first_seq=author.seqs[0],
        last_seq=author.seqs[-1],
        ended_at=now_ms(),
    )
    await Bucket(node.bus, "generations").put(f"{author.sid}.{author.gid}", encode(kept))


async def test_the_conversation_is_there_when_its_log_has_aged_out(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(3)
    await record(node, author, "0 1 2 ")
    await node.bus.api(f"STREAM.PURGE.{author.stream}", {"filter": log_subject(author.sid)})
    told = (await node.http.get(f"/v1/sessions/{author.sid}/messages", headers=node.bearer(author.sid))).json()
    assert [(message["role"], message["content"]) for message in told["messages"]] == [
        ("user", "hello"),
        ("assistant", "0 1 2 "),
    ]
    async with node.events(author.sid) as events:
        seen = await events.until("caught_up")
    assert [json.loads(event["data"])["content"] for event in seen if event["event"] == "message"] == [
        "hello",
        "0 1 2 ",
    ]
    async with node.events(author.sid, after=f"{await node.incarnation()}-{author.seqs[1]}") as events:
        again = await events.until("caught_up")
    assert [event["event"] for event in again] == ["hello", "reset", "caught_up"]


async def test_turns_that_have_aged_out_have_no_place_before_the_last_of_them(node: RunningNode) -> None:
    """Who is cut off among them begins anew; there is nowhere to go on from that would not lose the others."""
    author = await node.session()
    for text in ("0 ", "0 1 ", "0 1 2 "):
        await author.answer(text.count(" "))
        await record(node, author, text)
    await node.bus.api(f"STREAM.PURGE.{author.stream}", {"filter": log_subject(author.sid)})
    async with node.events(author.sid) as events:
        seen = await events.until("caught_up")
    assert [event["event"] for event in seen] == ["hello"] + ["message"] * 6 + ["caught_up"]
    assert ["id" in event for event in seen] == [False] * 6 + [True, False]
    assert "cursor" not in json.loads(seen[0]["data"])
    assert json.loads(seen[-1]["data"])["cursor"] == seen[6]["id"]
    author.seqs.clear()  # a log that holds nothing begins anew
    await author.answer(1)
    async with node.events(author.sid, after=seen[6]["id"]) as events:
        later = await events.until("done")
    assert [event["data"] for event in later if "id" in event and event["event"] != "hello"] == author.data[-3:]


async def test_hello_does_not_wait_long_for_what_has_ended(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ingress would take the node for lost. What it begins with is not known then, so it has no place."""
    monkeypatch.setattr(subscriber, "HELLO_WITHIN", 0.1)
    goes_on = held_back(monkeypatch)
    author = await node.session()
    await author.answer(2)
    async with node.events(author.sid) as events:
        hello = await events.next()
        goes_on.set()
        seen = await events.until("caught_up")
    assert (hello["event"], "id" in hello) == ("hello", False)
    assert [(event["event"], "id" in event) for event in seen[:-1]] == [("message", True)] * 2

"""A cursor that cannot be honoured is said so (`reset`), never silently skipped; one that can costs no question."""

from __future__ import annotations

import re

import pytest

from broker.bus.errors import WrongLastSequence
from broker.bus.frames import TOKEN, encode_tokens
from broker.bus.log import store
from broker.bus.nats import Msg
from broker.bus.subjects import log_subject
from tests.fixtures.nats_server import NatsServer
from tests.fixtures.node import Author, Events, RunningNode, running_node


async def history(node: RunningNode, sid: str, after: str) -> list[dict[str, str]]:
    async with node.events(sid, after=after) as events:
        return await events.until("caught_up")


@pytest.mark.parametrize("case", ["other incarnation", "beyond the end", "another session's", "between two frames"])
async def test_a_cursor_that_is_no_place_of_this_log_is_reset_and_goes_on_from_the_earliest(
    node: RunningNode, case: str
) -> None:
    author, other = await node.session(), await node.session()
    await author.start()
    await other.start()
    await author.tokens(3)
    await other.tokens(3)
    await author.done()
    incarnation = await node.incarnation()
    cursor = {
        "other incarnation": f"{'x' if incarnation[0] != 'x' else 'y'}{incarnation[1:]}-{author.seqs[1]}",
        "beyond the end": f"{incarnation}-{author.seqs[-1] + 1000}",
        "another session's": f"{incarnation}-{other.seqs[1]}",
        "between two frames": f"{incarnation}-{author.seqs[0] + 1}",
    }[case]
    seen = await history(node, author.sid, cursor)
    assert [event["event"] for event in seen[:2]] == ["hello", "reset"]
    assert f'"earliest":"{incarnation}-0"' in seen[1]["data"]
    assert [event["data"] for event in seen[2:-1]] == author.data
    assert seen[1].get("id") is None, "what cannot be honoured has no place to remember"


async def test_a_cursor_behind_which_the_log_was_purged_is_reset_to_what_is_left(fresh_nats: NatsServer) -> None:
    """Retention has passed it: the cold node that is asked next says so, and goes on with the first frame left."""
    async with running_node(fresh_nats) as first:
        author = await first.session()
        await author.answer(10)
        incarnation = await first.incarnation()
        await first.bus.api("STREAM.PURGE.TOK_00", {"filter": log_subject(author.sid), "seq": author.seqs[6]})
    async with running_node(fresh_nats, "node-cold", warm_frames=0) as cold:
        async with cold.events(author.sid, after=f"{incarnation}-{author.seqs[2]}") as events:
            seen = await events.until("caught_up")
        assert [event["event"] for event in seen[:2]] == ["hello", "reset"]
        assert f'"earliest":"{incarnation}-{author.seqs[5]}"' in seen[1]["data"]
        assert [event["data"] for event in seen[2:-1]] == author.data[6:]
        async with cold.events(author.sid, after=f"{incarnation}-{author.seqs[5]}") as events:
            whole = await events.until("caught_up")
        assert "reset" not in [event["event"] for event in whole], "the earliest cursor is one to go on from"


async def test_a_log_with_a_frame_missing_inside_is_not_passed_off_as_whole(fresh_nats: NatsServer) -> None:
    async with running_node(fresh_nats) as first:
        author = await first.session()
        await author.answer(10)
        await first.bus.api("STREAM.MSG.DELETE.TOK_00", {"seq": author.seqs[5], "no_erase": True})
    async with (
        running_node(fresh_nats, "node-cold", warm_frames=0) as cold,
        cold.events(author.sid, after="0") as events,
    ):
        seen = await first_of(events, "reset", "closed")
    shown = [event["data"] for event in seen if "id" in event and event["event"] != "hello"]
    assert shown[:5] == author.data[:5]
    assert author.data[6] not in shown[:6], "nothing behind the hole as if there were none"
    assert {event["event"] for event in seen} & {"reset", "closed"}


async def first_of(events: Events, *names: str) -> list[dict[str, str]]:
    seen = [await events.next()]
    while seen[-1]["event"] not in names:
        seen.append(await events.next())
    return seen


async def test_a_log_that_gets_another_incarnation_is_said_to_everyone_who_watches(fresh_nats: NatsServer) -> None:
    """Restored from an older copy: OKOME changes the incarnation, and open streams hear of it as old cursors do."""
    async with running_node(fresh_nats) as node:
        author = await node.session()
        await author.answer(3)
        async with node.events(author.sid, after="0") as events:
            await events.until("caught_up")
            config = (await node.bus.api("STREAM.INFO.TOK_00"))["config"]
            config["metadata"] |= {"incarnation": "restored"}
            await node.bus.api("STREAM.UPDATE.TOK_00", config)
            seen = await events.until("caught_up")
        assert seen[0]["event"] == "reset"
        assert '"earliest":"restored-0"' in seen[0]["data"]
        assert [event["id"] for event in seen[1:-1]] == [f"restored-{seq}" for seq in author.seqs]
        assert [event["data"] for event in seen[1:-1]] == author.data


async def test_a_log_that_was_made_anew_is_not_taken_for_the_old_one(fresh_nats: NatsServer) -> None:
    async with running_node(fresh_nats) as node:
        author = await node.session()
        await author.answer(3)
        async with node.events(author.sid, after="0") as events:
            await events.until("caught_up")
            config = (await node.bus.api("STREAM.INFO.TOK_00"))["config"]
            await node.bus.api("STREAM.DELETE.TOK_00")
            config["metadata"] = {"incarnation": "madeanew"}
            await node.bus.api("STREAM.CREATE.TOK_00", config)
            again = Author(node.bus, author.sid)
            seen = await events.until("caught_up")
            assert seen[0]["event"] == "reset"
            await again.answer(2)
            seen = await events.until("done")
        assert [event["data"] for event in seen if "id" in event] == again.data


async def test_inside_the_ring_attaching_asks_nobody(node: RunningNode) -> None:
    """▸ Attach and resume inside the ring make no JetStream call, ask no OKOME and read no record."""
    author = await node.session()
    async with node.events(author.sid, after="0") as watching:
        await author.start()
        await author.tokens(20)
        while (await watching.next())["data"] != author.data[-1]:
            pass  # the node hears of a frame a moment after it was stored
        async with node.events(author.sid, after="now") as warm:
            await warm.until("caught_up")
        asked: list[str] = []

        async def overhear(msg: Msg) -> None:
            asked.append(msg.subject)

        await node.bus.subscribe("$JS.API.>", overhear)
        await node.bus.subscribe("okome.>", overhear)
        await node.bus.api("INFO")  # the server has read the subscriptions
        incarnation = await node.incarnation()
        asked.clear()
        for seq in author.seqs[::5]:
            seen = await history(node, author.sid, f"{incarnation}-{seq}")
            assert "reset" not in [event["event"] for event in seen]
        await node.bus.api("INFO")  # and told of everything until now
    standing = re.compile(
        r"\$JS\.API\.(INFO|STREAM\.INFO\.TOK_|STREAM\.MSG\.GET\.KV_revoked|CONSUMER\.MSG\.NEXT|.*KV_nodes"
        r"|CONSUMER\.(CREATE|DELETE)\.TOK_\d+\.tail-)"  # the tail's, where its heartbeats came late
    )
    assert [subject for subject in asked if not standing.match(subject)] == []


async def test_what_the_stream_refused_is_not_shown(node: RunningNode) -> None:
    """Nothing is shown that is not in the log: a fenced worker's publish reaches core subscriptions, and no viewer."""
    author = await node.session()
    async with node.events(author.sid, after="0") as events:
        await author.start()
        await author.tokens(5)
        await events.until("caught_up")
        refused: list[Msg] = []

        async def overhear(msg: Msg) -> None:
            refused.append(msg)

        await node.bus.subscribe(log_subject(author.sid), overhear)
        zombie = encode_tokens(TOKEN, author.gid, 1, "zombie11", author.seqs[2], 3, 1, "ZOMBIE")
        with pytest.raises(WrongLastSequence):
            await store(node.bus, log_subject(author.sid), zombie, expect_last=author.seqs[2])
        await author.tokens(5)
        await author.done()
        seen = await events.until("done")
    assert any(b"ZOMBIE" in msg.data for msg in refused), "the fault happened"
    assert not any("ZOMBIE" in event["data"] for event in seen)


async def test_a_fresh_viewer_gets_one_message_per_finished_turn_and_then_the_running_answer(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(50)
    gid = await author.start("again")
    await author.tokens(3)
    async with node.events(author.sid) as events:
        seen = await events.until("caught_up")
    names = [event["event"] for event in seen]
    assert names == ["hello", "message", "message", "start", "token", "token", "token", "caught_up"]
    assert [event["data"] for event in seen[3:-1]] == author.data[-4:]
    assert gid in seen[3]["data"]
    text = "".join(f"{index} " for index in range(50))
    assert f'"content":"{text}"' in seen[2]["data"]
    incarnation = await node.incarnation()
    assert seen[2]["id"] == f"{incarnation}-{author.seqs[51]}"


async def test_from_now_on_there_is_a_cursor_before_the_first_frame(node: RunningNode) -> None:
    author = await node.session()
    await author.answer(3)
    async with node.events(author.sid, after="now") as events:
        seen = await events.until("caught_up")
    assert [event["event"] for event in seen] == ["hello", "caught_up"]
    assert seen[0]["id"] == f"{await node.incarnation()}-{author.seqs[-1]}"
    await author.answer(3)
    async with node.events(author.sid, after=seen[0]["id"]) as events:
        again = await events.until("done")  # the node may not have heard of it all yet: some of it may come live
    shown = [event["data"] for event in again if event["event"] not in ("hello", "caught_up")]
    assert shown == author.data[5:]

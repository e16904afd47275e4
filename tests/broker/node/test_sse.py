"""SSE: every stored frame once, in order, byte for byte; every cursor is one to go on from."""

import asyncio

from tests.fixtures.node import RunningNode


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


async def test_a_viewer_behind_its_ring_reads_the_log_and_then_joins_the_ring(nats: object) -> None:
    from tests.fixtures.nats_server import NatsServer
    from tests.fixtures.node import running_node

    assert isinstance(nats, NatsServer)
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

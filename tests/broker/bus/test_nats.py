"""The connection: each trap of nats-py that broker/bus/nats.py works around, and the plain client falling into it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import nats
import nats.errors
import pytest
import structlog.testing
import uvloop
from nats.aio.client import Client

from broker.bus import log
from broker.bus.errors import BusError, BusUnavailable, StoreRejected, WrongLastSequence
from broker.bus.nats import PING_TIMEOUT, Bus, Msg
from broker.bus.patience import MOST
from tests.broker.bus.conftest import at, connected, eventually, leave, make_stream, plain, restarted
from tests.fixtures.nats_server import NatsServer

QUICK = 0.3  # seconds to wait for what is not to come
FROZEN = 10.0  # seconds until a frozen server has been left at the latest; nats-py alone waits until it goes on
DEADLINE = 20.0

Loop = Callable[[], asyncio.AbstractEventLoop]
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def lose_connection(bus: Bus) -> None:
    """As a RST would."""
    assert bus._client._transport is not None
    bus._client._transport._io_writer.transport.abort()  # type: ignore[attr-defined]


async def nothing(_: Msg) -> None:
    """A subscriber that only keeps its subscription."""


# -- publishing --------------------------------------------------------------------------------------------------------


async def test_a_fence_violation_is_answered_at_once(bus: Bus) -> None:
    stream = await make_stream(bus)
    first = await log.store(bus, f"{stream}.a", b"1", expect_last=0)
    answers: asyncio.Queue[int | BusError] = asyncio.Queue()
    began = time.monotonic()
    with pytest.raises(WrongLastSequence) as caught:
        await log.store(bus, f"{stream}.a", b"2", expect_last=0)
    log.store_soon(bus, f"{stream}.a", b"2", 0, answers.put_nowait)
    again = await answers.get()
    assert time.monotonic() - began < MOST, "neither waited for its deadline"
    assert isinstance(again, WrongLastSequence)
    assert caught.value.last == again.last == first


async def test_publish_async_of_nats_py_never_resolves_on_a_violation(local_bus: Bus, nats: NatsServer) -> None:
    """The trap itself (issue #985): when this fails, the reason for a reply inbox of our own is gone."""
    stream = await make_stream(local_bus)
    await log.store(local_bus, f"{stream}.a", b"1")
    client = await plain(nats.url)
    try:
        fence = {"Nats-Expected-Last-Subject-Sequence": "0"}
        future = await client.jetstream().publish_async(f"{stream}.a", b"2", headers=fence)
        done, _ = await asyncio.wait({future}, timeout=QUICK)
        assert not done
        future.cancel()
    finally:
        await client.close()


async def test_a_late_ack_of_the_first_attempt_never_resolves_the_second(bus: Bus) -> None:
    """Every attempt has a reply token of its own: the first one's answer would carry the wrong sequence."""
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def slow_store(msg: Msg) -> None:
        asked.put_nowait(msg.reply)

    await bus.subscribe(f"slow.{bus.id}", slow_store)
    answers: asyncio.Queue[int | BusError] = asyncio.Queue()
    log.store_soon(bus, f"slow.{bus.id}", b"x", 0, answers.put_nowait)
    async with asyncio.timeout(DEADLINE):
        assert isinstance(await answers.get(), BusUnavailable)
    log.store_soon(bus, f"slow.{bus.id}", b"x", 0, answers.put_nowait)
    first, second = await asked.get(), await asked.get()
    assert first != second
    await bus.publish(first, b'{"stream":"S","seq":1}')
    await bus.publish(second, b'{"stream":"S","seq":2}')
    async with asyncio.timeout(DEADLINE):
        assert await answers.get() == 2
    await bus.publish(second, b'{"stream":"S","seq":3}')
    await bus.request("$JS.API.INFO")  # what was sent before it has been received
    assert answers.empty()


async def test_a_publish_that_nobody_stores_is_undecided_at_once(bus: Bus) -> None:
    began = time.monotonic()
    with pytest.raises(BusUnavailable):
        await log.store(bus, "no.such.stream", b"x", expect_last=0)
    answers: asyncio.Queue[int | BusError] = asyncio.Queue()
    log.store_soon(bus, "no.such.stream", b"x", 0, answers.put_nowait)
    assert isinstance(await answers.get(), BusUnavailable)
    assert time.monotonic() - began < MOST, "neither waited for its deadline"


async def test_a_publish_to_a_frozen_server_is_undecided_within_its_deadline(
    fresh_bus: Bus, fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And undecided it was: the server stores it after all, once it goes on."""
    monkeypatch.setattr("broker.bus.nats.PING_TIMEOUT", 2 * DEADLINE)  # else letting go of the server ends both as well
    stream = await make_stream(fresh_bus)
    answers: asyncio.Queue[int | BusError] = asyncio.Queue()
    fresh_nats.freeze()
    began = time.monotonic()
    log.store_soon(fresh_bus, f"{stream}.a", b"soon", 0, answers.put_nowait)
    with pytest.raises(BusUnavailable):
        await log.store(fresh_bus, f"{stream}.b", b"x", expect_last=0, timeout=0.1)
    assert time.monotonic() - began < MOST
    assert isinstance(await answers.get(), BusUnavailable)
    assert time.monotonic() - began < 3 * MOST
    fresh_nats.thaw()
    await eventually(lambda: fresh_bus.round_trip_ok)
    with pytest.raises(WrongLastSequence):
        await log.store(fresh_bus, f"{stream}.b", b"x", expect_last=0)
    found = await log.last(fresh_bus, stream, f"{stream}.a")
    assert found is not None
    assert found.data == b"soon"


async def test_a_publish_while_disconnected_is_refused_and_not_sent_later(fresh_nats: NatsServer) -> None:
    """The plain client buffers it, and it arrives when nobody expects it any more."""
    client = await plain(fresh_nats.url)
    async with connected(fresh_nats.url) as bus:
        stream = await make_stream(bus)
        fresh_nats.kill()
        await eventually(lambda: not bus.connected and not client.is_connected)
        await client.publish(f"{stream}.plain", b"late")
        with pytest.raises(BusUnavailable):
            await bus.publish(f"{stream}.ours", b"late")
        with pytest.raises(BusUnavailable):
            log.store_soon(bus, f"{stream}.ours", b"late", 0, lambda _: pytest.fail("called back"))
        with pytest.raises(BusUnavailable):
            await bus.request(f"{stream}.ours", b"late")
        fresh_nats.start()
        await eventually(lambda: bus.connected and client.is_connected)
        async with asyncio.timeout(DEADLINE):
            while await log.last(bus, stream, f"{stream}.plain") is None:  # it is read before it is stored
                continue
        assert await log.last(bus, stream, f"{stream}.ours") is None
    await client.close()


async def test_a_payload_beyond_the_servers_limit_is_an_answer_not_weather(bus: Bus) -> None:
    with pytest.raises(StoreRejected) as caught:
        await bus.publish("too.big", bytes(bus.max_payload + 1))
    assert caught.value.err_code == 10054
    assert bus.connected


async def test_a_core_subscription_sees_what_the_stream_refuses(bus: Bus) -> None:
    """Why nothing is ever tailed from the subject itself: a fenced-off zombie's token would be shown."""
    stream = await make_stream(bus)
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    async def see(msg: Msg) -> None:
        seen.put_nowait(msg.data)

    await bus.subscribe(f"{stream}.a", see)
    await log.store(bus, f"{stream}.a", b"stored", expect_last=0)
    with pytest.raises(WrongLastSequence):
        await log.store(bus, f"{stream}.a", b"fenced off", expect_last=0)
    async with asyncio.timeout(DEADLINE):
        assert [await seen.get(), await seen.get()] == [b"stored", b"fenced off"]
    assert [each.data for each in await log.page(bus, stream, f"{stream}.a", 0)] == [b"stored"]


# -- the connection ----------------------------------------------------------------------------------------------------


BLOB = bytes(6 * 1024 * 1024)


async def fill(server: NatsServer, *clients: Client) -> None:
    """Freeze the server and write until the clients' sockets take no more."""
    server.freeze()
    for client in clients:
        transport = client._transport
        assert transport is not None
        while not buffered(client):
            transport.write(b"PUB blob %d\r\n%b\r\n" % (len(BLOB), BLOB))
            await asyncio.sleep(0)


def buffered(client: Client) -> int:
    size: int = client._transport._io_writer.transport.get_write_buffer_size()  # type: ignore[union-attr]
    return size


def play(loop: Loop, story: Callable[[], Coroutine[Any, Any, None]], *servers: NatsServer) -> None:
    """Run it on that kind of loop. However it ends, no server is frozen when the loop closes: uvloop would wait for
    ever for a peer to take what is buffered."""
    runner = asyncio.Runner(loop_factory=loop)
    try:
        runner.run(story())
    finally:
        for server in servers:
            server.thaw()
        runner.close()


@LOOPS
def test_a_frozen_server_is_left_although_the_send_buffer_is_full(loop: Loop, two_nats: list[NatsServer]) -> None:
    """nats-py notices by its own pings too, and then waits for the frozen peer to take what is buffered (#671).

    What was not written when the connection broke is never sent: not to the next server either.
    """

    async def story() -> None:
        url = ",".join(server.url for server in two_nats)
        async with connected(url) as bus:
            frozen, other = sorted(two_nats, key=lambda server: at(server) != bus.server)
            client = await plain(
                frozen.url,
                other.url,
                dont_randomize=True,
                ping_interval=0.2,
                max_outstanding_pings=2,
            )
            assert client.connected_url is not None
            assert client.connected_url.netloc == at(frozen)
            late: list[bytes] = []

            async def note(msg: Msg) -> None:
                late.append(msg.data)

            async with connected(other.url) as watcher:
                await watcher.subscribe("late", note)
                await watcher.request("$JS.API.INFO")
                await fill(frozen, bus._client, client)
                bus.publish_now("late", b"buffered")
                await eventually(lambda: client.is_reconnecting)
                took = await eventually(lambda: bus.connected and bus.server == at(other), FROZEN)
                assert took < FROZEN
                await bus.request("$JS.API.INFO")
                await bus.publish("late", b"sent")
                await eventually(lambda: late)
                assert late == [b"sent"]
                assert client.is_reconnecting
            frozen.thaw()
            await eventually(lambda: client.is_connected)
            await client.close()

    play(loop, story, *two_nats)


async def test_a_kick_away_from_a_frozen_server_does_not_hang(two_nats: list[NatsServer]) -> None:
    """`force_reconnect` alone waits for the frozen peer as well."""
    async with connected(",".join(server.url for server in two_nats)) as bus:
        frozen, other = sorted(two_nats, key=lambda server: at(server) != bus.server)
        await fill(frozen, bus._client)
        async with asyncio.timeout(FROZEN):
            await bus.kick()
            await eventually(lambda: bus.connected and bus.server == at(other))
            await bus.request("$JS.API.INFO")
        frozen.thaw()


async def test_a_frozen_bus_can_be_closed(fresh_nats: NatsServer) -> None:
    bus = await Bus.connect(fresh_nats.url, "test")
    await bus.request("$JS.API.INFO")
    await fill(fresh_nats, bus._client)
    hopeless = asyncio.create_task(bus.request("$JS.API.INFO", timeout=30))
    await asyncio.sleep(0)  # it has been sent
    async with asyncio.timeout(FROZEN):
        await bus.close()
        with pytest.raises(BusUnavailable):
            await hopeless
    await bus.close()
    with pytest.raises(BusUnavailable):
        await bus.publish("x", b"")


@LOOPS
def test_a_server_that_pauses_is_found_again(loop: Loop, fresh_nats: NatsServer) -> None:
    """The plain client's flush cancels its ping, and the late pong ends its read loop: deaf for ever, yet "connected"
    and its next flush succeeds without a server."""

    async def story() -> None:
        client = await plain(fresh_nats.url)
        async with connected(fresh_nats.url) as bus:
            fresh_nats.freeze()
            with pytest.raises(nats.errors.FlushTimeoutError):
                await client.flush(timeout=QUICK)  # type: ignore[arg-type]
            await eventually(lambda: not bus.round_trip_ok)
            fresh_nats.thaw()
            await eventually(lambda: bus.round_trip_ok, FROZEN)
            await bus.request("$JS.API.INFO")
            reading = client._reading_task
            assert reading is not None
            await eventually(reading.done)
            assert client.is_connected
            await client.flush(timeout=QUICK)  # type: ignore[arg-type]
            with pytest.raises(nats.errors.TimeoutError):
                await client.request("$JS.API.INFO", timeout=QUICK)
        await client.close()

    play(loop, story, fresh_nats)


@LOOPS
def test_an_event_loop_that_stood_still_goes_on(loop: Loop, nats: NatsServer) -> None:
    """A worker that loads a model blocks its loop for seconds: the pings of that time are late, nothing else."""

    async def story() -> None:
        async with connected(nats.url) as bus:
            ping = asyncio.create_task(bus._pong())
            await asyncio.sleep(0)
            time.sleep(PING_TIMEOUT + QUICK)  # noqa: ASYNC251  # the very thing
            await ping
            await eventually(lambda: bus.round_trip_ok, FROZEN)
            await bus.request("$JS.API.INFO")

    play(loop, story, nats)


@LOOPS
def test_a_connection_that_nothing_reads_any_more_is_let_go(loop: Loop, nats: NatsServer) -> None:
    """nats-py's read loop ends silently on an unexpected exception. Nobody but a round trip of our own notices."""

    async def story() -> None:
        async with connected(nats.url) as bus:
            assert bus._client._reading_task is not None
            bus._client._reading_task.cancel()
            reconnects = bus._client.stats["reconnects"]
            await eventually(lambda: bus._client.stats["reconnects"] > reconnects and bus.round_trip_ok, FROZEN)
            await bus.request("$JS.API.INFO")

    play(loop, story, nats)


async def test_a_question_to_the_server_is_undecided_as_soon_as_its_connection_is_lost(
    fresh_bus: Bus, fresh_nats: NatsServer
) -> None:
    """Its answer would have come that way. Who asks again does so now, not when the time of the first is over."""
    fresh_nats.freeze()
    question = asyncio.create_task(fresh_bus.api("INFO", timeout=DEADLINE))
    await asyncio.sleep(0)  # it has been sent
    lose_connection(fresh_bus)
    began = time.monotonic()
    try:
        with pytest.raises(BusUnavailable):
            await question
        assert time.monotonic() - began < DEADLINE / 2
        assert not fresh_bus.connected, "no server has answered"
    finally:
        fresh_nats.thaw()


async def test_what_somebody_else_was_asked_may_be_answered_after_the_connection_was_lost(
    bus: Bus, nats_url: str
) -> None:
    """OKOME takes its time, and to ask it twice is not for the connection to decide."""
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def take(msg: Msg) -> None:
        asked.put_nowait(msg.reply)

    async with connected(nats_url) as okome:
        await okome.subscribe("slow.operation", take)
        await okome.request("$JS.API.INFO")
        answer = asyncio.create_task(bus.request("slow.operation", timeout=DEADLINE))
        reply = await asyncio.wait_for(asked.get(), DEADLINE)
        reconnects = bus._client.stats["reconnects"]
        lose_connection(bus)
        await eventually(lambda: bus._client.stats["reconnects"] > reconnects and bus.connected)
        await bus.request("$JS.API.INFO")
        await okome.publish(reply, b"done")
        assert (await answer).data == b"done"


async def test_subscriptions_and_questions_survive_a_killed_server(fresh_bus: Bus, fresh_nats: NatsServer) -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(msg: Msg) -> None:
        got.put_nowait(msg.data)

    await fresh_bus.subscribe("kept.*", take)
    await restarted(fresh_nats, fresh_bus)
    await fresh_bus.publish("kept.a", b"x")
    async with asyncio.timeout(DEADLINE):
        assert await got.get() == b"x"
    await fresh_bus.api("INFO")


async def test_a_server_that_leaves_is_left_at_once(clustered_nats: list[NatsServer]) -> None:
    """Lame duck: it says so, and the connection moves although the server still answers.

    What was handed to it in its last moment may be lost on its way to the others: about every publish its ack decides.
    """
    async with connected(",".join(server.url for server in clustered_nats)) as bus:
        leaving, other = sorted(clustered_nats, key=lambda server: at(server) != bus.server)
        told = asyncio.Event()
        bus.on_lame_duck = told.set
        got: list[bytes] = []

        async def take(msg: Msg) -> None:
            got.append(msg.data)

        async with connected(other.url) as watcher:
            await watcher.subscribe("moved", take)
            await eventually(lambda: len(bus._client.servers) >= 2)
            leave(leaving)
            async with asyncio.timeout(10):  # the server tells its clients when its JetStream is down, a second later
                await told.wait()
            took = await eventually(lambda: bus.connected and bus.server == at(other), 2)
            assert took < 1
            await bus.publish("moved", b"after")
            await eventually(lambda: got == [b"after"])


async def test_a_server_that_answers_and_stores_nothing_is_left(two_nats: list[NatsServer]) -> None:
    """As one that is cut off from the others; here the other one alone has the stream."""
    async with connected(",".join(server.url for server in two_nats)) as bus:
        (other,) = (server for server in two_nats if at(server) != bus.server)
        async with connected(other.url) as there:
            stream = await make_stream(there)
        async with asyncio.timeout(DEADLINE):
            while bus.server != at(other):
                with suppress(BusUnavailable):
                    await log.store(bus, f"{stream}.a", b"x", expect_last=0)
                await asyncio.sleep(0.05)


async def test_a_permission_violation_is_logged_as_what_it_is(guarded_nats: NatsServer) -> None:
    """The publish itself only goes unanswered."""
    with structlog.testing.capture_logs() as logs:
        async with connected(guarded_nats.url, user="worker", password="s3cret") as bus:
            await bus.api("INFO")
            with pytest.raises(BusUnavailable):
                await bus.request("forbidden.x", timeout=QUICK)
            await eventually(lambda: any(each["event"] == "bus.permission_denied" for each in logs))
    (denied,) = (each for each in logs if each["event"] == "bus.permission_denied")
    assert "forbidden.x" in denied["error"]
    assert denied["log_level"] == "error"


async def test_a_callback_that_fails_is_logged_and_the_next_message_comes(local_bus: Bus) -> None:
    got = asyncio.Event()

    async def take(msg: Msg) -> None:
        if msg.data == b"bad":
            raise ZeroDivisionError
        got.set()

    with structlog.testing.capture_logs() as logs:
        await local_bus.subscribe("fragile", take)
        await local_bus.publish("fragile", b"bad")
        await local_bus.publish("fragile", b"good")
        await asyncio.wait_for(got.wait(), DEADLINE)
    assert [each["event"] for each in logs] == ["bus.callback_failed"]


# -- questions ---------------------------------------------------------------------------------------------------------


async def test_an_api_error_is_data(bus: Bus) -> None:
    with pytest.raises(StoreRejected) as caught:
        await bus.api("STREAM.INFO.NO_SUCH_STREAM")
    assert caught.value.err_code == log.STREAM_NOT_FOUND


async def test_answers_that_do_not_all_come_are_no_answer(bus: Bus) -> None:
    async def half(msg: Msg) -> None:
        await bus.publish(msg.reply, b"1")
        await bus.publish(msg.reply, b"2")

    await bus.subscribe("half", half)
    with pytest.raises(BusUnavailable, match="2 answers"):
        await bus.collect("half", b"", lambda msg: msg.data == b"3", timeout=1)
    assert len(await bus.collect("half", b"", lambda msg: msg.data == b"2")) == 2
    with pytest.raises(BusUnavailable):
        await bus.collect("nobody", b"", lambda _: True)
    assert len(bus._replies) == 0

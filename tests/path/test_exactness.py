"""The whole path, from outside: every viewer sees every token once, to the byte, from wherever it asks."""

import asyncio
import json
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from broker.bus.log import read_all, store
from broker.bus.nats import Bus
from broker.bus.operations import Explain, Route
from broker.bus.retry import retry
from broker.bus.script import Script
from broker.bus.subjects import log_stream, log_subject, partition_of
from compose.chaos.http import call
from compose.chaos.viewer import Viewer
from tests.fixtures.system import System
from tests.path.crowd import DEADLINE, crowd_of, judge, told, watching


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Two of everything that carries tokens."""
    with System(tmp_path_factory.mktemp("path"), "--nodes", "2", "--workers", "2", "--ingresses", "2") as running:
        yield running


async def test_two_hundred_sessions_at_once_are_exact(system: System) -> None:
    async with watching(system, sessions=200, tokens=60, rate=12):
        pass


async def test_every_cursor_of_an_answer_resumes_exactly(system: System) -> None:
    async with watching(system, sessions=1, tokens=60, rate=200) as (one,):
        pass
    stored = told(one.viewers[0])
    for index, (_, cursor, _) in enumerate(stored[:-1]):
        again = Viewer(lambda: system.url, one.sid, system.api_key)
        again.cursor = cursor
        async with asyncio.timeout(DEADLINE):
            await again.watch()
        assert told(again) == stored[index + 1 :]


STRAYS = [b"hello operator", b"", b"\x00\xff" * 40, b"okome 1 token\n{}"]


async def test_a_stray_message_in_a_log_costs_nobody_a_token(system: System) -> None:
    """As `nats pub` leaves it there, while an answer runs and behind its end; whoever comes later finds none."""
    bus = await Bus.connect(system.nats_url, "stray")
    try:
        async with watching(system, sessions=4, tokens=60, rate=20) as watched:
            for number, stray in enumerate(STRAYS):
                await store(bus, log_subject(watched[number].sid), stray)
                await asyncio.sleep(0.3)
            await store(bus, log_subject(watched[0].sid), b"once more")
        for one, stray in zip(watched, STRAYS, strict=True):
            await store(bus, log_subject(one.sid), stray)
        for one in watched:
            late = Viewer(lambda: system.url, one.sid, system.api_key)  # of this very system
            async with asyncio.timeout(DEADLINE):
                await late.watch()
            assert told(late) == told(one.viewers[0])
            path = f"/v1/sessions/{one.sid}/generations"
            accepted = await call(system.url, "POST", path, system.api_key, {"prompt": json.dumps({"tokens": 3})})
            assert accepted.status == 202, accepted.body
            async with asyncio.timeout(DEADLINE):
                await late.watch(2)
            assert [event.name for event in late.stored()].count("done") == 2
            for message in await read_all(bus, log_stream(partition_of(one.sid)), log_subject(one.sid)):
                assert message.data.startswith(b"okome/1 ")
    finally:
        await bus.close()


async def test_with_okome_stopped_streams_go_on_and_only_new_work_is_refused(system: System) -> None:
    async with watching(system, sessions=10, tokens=100, rate=20) as watched:
        system.kill("control-1", signal.SIGSTOP)
        try:
            late = Viewer(lambda: system.url, watched[0].sid, system.api_key)
            watch = asyncio.create_task(late.watch())
            await late.seen(3)  # attaching needs no OKOME
            refused = await call(system.url, "POST", "/v1/sessions", system.api_key, {})
            assert refused.status == 503
            assert refused.json()["error"]["code"] == "unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            await watch
        finally:
            system.kill("control-1", signal.SIGCONT)
    assert told(late) == told(watched[0].viewers[0])


async def test_the_next_turn_goes_to_the_worker_that_holds_the_conversation_warm(system: System) -> None:
    """Once OKOME has heard of it, which `route` tells; by chance all would go there one time in 256."""
    async with watching(system, sessions=8, tokens=10, rate=200) as watched:
        pass
    bus = await Bus.connect(system.nats_url, "test")
    try:
        async with asyncio.timeout(DEADLINE), crowd_of(system) as crowd:
            for one in watched:
                ask = partial(bus.ask, "route", Explain("scripted", one.sid), Route)
                while not (await retry(ask)).worker:  # noqa: ASYNC110  # no event tells it
                    await asyncio.sleep(0.05)
                await crowd.ask(one, Script(tokens=10, rate=200))
                await one.viewers[0].watch(2)
            await judge(system, watched)
    finally:
        await bus.close()
    for one in watched:
        starts = [event for event in one.viewers[0].stored() if event.name == "start"]
        first, second = (json.loads(event.data)["worker"] for event in starts)
        assert first == second

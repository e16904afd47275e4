"""The whole path, from outside: every viewer sees every token once, to the byte, from wherever it asks."""

import asyncio
import json
import signal
from collections.abc import Iterator
from functools import partial

import pytest

from broker.bus.nats import Bus
from broker.bus.operations import Explain, Route
from broker.bus.retry import retry
from broker.bus.script import Script
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

"""The whole path, from outside: every viewer sees every token once, to the byte, whatever is killed under it."""

import asyncio
import json
import signal
from collections.abc import Iterator

import pytest

from broker.bus.nats import Bus
from broker.bus.operations import Explain, Route
from tests.fixtures.system import System
from tests.path.crowd import DEADLINE, watching
from tests.path.viewer import Viewer, call


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Two of everything that carries tokens, so that one of each can be killed."""
    with System(tmp_path_factory.mktemp("path"), "--nodes", "2", "--workers", "2", "--ingresses", "2") as running:
        yield running


async def test_two_hundred_sessions_at_once_are_exact(system: System) -> None:
    async with watching(system, sessions=200, tokens=60, rate=12):
        pass


async def test_every_cursor_of_an_answer_resumes_exactly(system: System) -> None:
    async with watching(system, sessions=1, tokens=60, rate=200) as (one,):
        pass
    stored = one.viewer.stored()
    for index, event in enumerate(stored[:-1]):
        again = Viewer(system.url, one.viewer.sid, system.api_key)
        again.cursor = event.id
        async with asyncio.timeout(DEADLINE):
            await again.watch()
        assert again.stored() == stored[index + 1 :]


async def test_a_worker_killed_mid_stream_costs_an_epoch_and_no_token(system: System) -> None:
    async with watching(system, sessions=20, tokens=120, rate=20) as watched:
        killed = await asyncio.to_thread(system.kill, "worker-1")
    attempts = [one for one in watched if "attempt" in one.viewer.names()]
    assert attempts, "no generation ran on the worker that was killed"
    system.wait_restarted(killed)


async def test_a_node_killed_mid_stream_is_not_seen_by_any_viewer(system: System) -> None:
    async with watching(system, sessions=20, tokens=120, rate=20) as watched:
        serving = {json.loads(one.viewer.events[0].data)["node"] for one in watched}
        killed = await asyncio.to_thread(system.kill, sorted(serving)[0])
    assert all(one.viewer.connections == 1 for one in watched), "the ingress bridges it"
    assert any(sum(event.name == "served_by" for event in one.viewer.events) > 1 for one in watched)
    system.wait_restarted(killed)


async def test_an_ingress_killed_mid_stream_is_bridged_by_the_clients_cursor(system: System) -> None:
    async with watching(system, sessions=20, tokens=120, rate=20) as watched:
        killed = await asyncio.to_thread(system.kill, "ingress-1")
    assert any(one.viewer.connections > 1 for one in watched), "nobody hung on the ingress that was killed"
    system.wait_restarted(killed)


async def test_with_okome_stopped_streams_go_on_and_only_new_work_is_refused(system: System) -> None:
    async with watching(system, sessions=10, tokens=100, rate=20) as watched:
        system.kill("control-1", signal.SIGSTOP)
        try:
            session = watched[0].viewer
            late = Viewer(system.url, session.sid, system.api_key)
            watch = asyncio.create_task(late.watch())
            await late.seen(5)  # attaching needs no OKOME
            refused = await call(system.url, "POST", "/v1/sessions", system.api_key, {})
            assert refused.status == 503
            assert refused.json()["error"]["code"] == "unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            await watch
        finally:
            system.kill("control-1", signal.SIGCONT)
    assert late.stored() == watched[0].viewer.stored()


async def test_the_next_turn_goes_to_the_worker_that_holds_the_conversation_warm(system: System) -> None:
    """Once OKOME has heard of it, which `route` tells; by chance all would go there one time in 256."""
    async with watching(system, sessions=8, tokens=10, rate=200) as watched:
        pass
    script = json.dumps({"tokens": 10, "rate": 200, "seed": 1})
    bus = await Bus.connect(system.nats_url, "test")
    try:
        async with asyncio.timeout(DEADLINE):
            for one in watched:
                question = Explain("scripted", one.viewer.sid)
                while not (await bus.ask("route", question, Route)).worker:  # noqa: ASYNC110  # no event tells it
                    await asyncio.sleep(0.05)
                path = f"/v1/sessions/{one.viewer.sid}/generations"
                body = {"prompt": script, "model": "scripted"}
                assert (await call(system.url, "POST", path, system.api_key, body)).status == 202
                await one.viewer.watch(2)
    finally:
        await bus.close()
    for one in watched:
        first, second = (json.loads(event.data)["worker"] for event in one.viewer.stored() if event.name == "start")
        assert first == second

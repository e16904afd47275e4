"""The system as `okome up` starts it by default: any of its processes is killed, and every transcript stays exact."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.fixtures.system import System
from tests.path.crowd import watching


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("kills")) as running:
        yield running


@pytest.mark.parametrize("victim", ["redis", "control", "node", "ingress", "worker", "nats"])
async def test_any_process_killed_while_answers_stream_costs_no_token(system: System, victim: str) -> None:
    async with watching(system, sessions=40, tokens=100, rate=20):
        killed = await asyncio.to_thread(system.kill, victim)
        await asyncio.to_thread(system.wait_restarted, killed)

"""One of three NATS servers is killed while answers stream: elections pass, and no token is lost or doubled."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.fixtures.system import System
from tests.path.crowd import watching


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("cluster"), "--nats", "3", "--no-restart") as running:
        yield running


async def test_a_nats_server_of_three_killed_mid_stream_costs_no_token(system: System) -> None:
    """It led about a third of the partitions and held consumers of the others; nobody restarts it."""
    async with watching(system, sessions=30, tokens=100, rate=20):
        await asyncio.to_thread(system.kill, "nats-2")
    async with watching(system, sessions=10, tokens=20, rate=20):
        pass  # the two that are left serve new answers, too

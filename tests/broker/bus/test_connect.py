"""How a connection to NATS begins: what an address may say, who one is, and what is said where it comes to nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest

from broker.bus.errors import BusUnavailable
from broker.bus.nats import Bus
from compose import nats_server
from compose.up.ports import Ports
from tests.broker.bus.conftest import at, connected, eventually, server_with
from tests.fixtures.nats_server import NatsServer

USER, PASSWORD = "me@home", "p@ss:w/rd,%41"


@pytest.fixture
def locked_nats(tmp_path: Path) -> Iterator[list[NatsServer]]:
    """Two servers of one cluster that ask for user and password."""
    config = tmp_path / "config"
    shutil.copytree(nats_server.CONFIG_DIR, config)
    with (config / "cluster.conf").open("a") as file:
        file.write(f'authorization {{ user: "{USER}", password: "{PASSWORD}" }}\n')
    with Ports() as ports, ExitStack() as stack:
        routes = tuple(f"nats://127.0.0.1:{ports.free()}" for _ in range(2))
        seats = [nats_server.ClusterSeat(route, routes) for route in routes]
        yield [
            stack.enter_context(server_with(tmp_path / name, name=name, seat=seat, config_dir=config))
            for name, seat in zip(("one", "two"), seats, strict=True)
        ]


async def test_who_the_address_says_one_is_counts_at_servers_that_one_hears_of_too(
    locked_nats: list[NatsServer],
) -> None:
    """nats-py does not decode a password, and sends that of an address to no server but that one."""
    first, second = locked_nats
    named = first.url.replace("//", f"//{quote(USER, safe='')}:{quote(PASSWORD, safe='')}@")
    async with connected(named) as bus:
        await eventually(lambda: len(bus._client.servers) == 2)
        first.kill()
        await eventually(lambda: bus.round_trip_ok and bus.server == at(second))


async def test_user_and_password_that_are_given_count_before_those_of_the_address(
    locked_nats: list[NatsServer],
) -> None:
    wrong = locked_nats[0].url.replace("//", "//nobody:nothing@")
    async with connected(wrong, user=USER, password=PASSWORD) as bus:
        assert bus.connected


async def test_no_server_is_said_in_time_and_without_the_password(guarded_nats: NatsServer) -> None:
    wrong = guarded_nats.url.replace("nats://", "nats://worker:hunter2@")
    began = time.monotonic()
    with pytest.raises(BusUnavailable, match="Authorization") as caught:
        await Bus.connect(wrong, "test", timeout=1.5)
    assert "hunter2" not in str(caught.value)
    guarded_nats.kill()
    with pytest.raises(BusUnavailable, match=at(guarded_nats)):
        await Bus.connect(guarded_nats.url, "test", timeout=0.5)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("url", ["", ",", "nats://a:b", "nats://none"])
async def test_an_address_that_is_none_is_said_at_once(url: str) -> None:
    """nats-py itself fails at the last, and cannot be closed then either."""
    with pytest.raises(BusUnavailable, match="no NATS server"):
        await Bus.connect(url, "test")

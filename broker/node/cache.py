"""The hot cache in Redis or Valkey: prefixes, tool schemas, recent embeddings. Only what may vanish at any moment.

Every call has 50 ms and a circuit breaker: a cache that is slow is a cache that misses. What is kept is bounded in
size, in number per kind (the oldest go first) and in time.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import NamedTuple

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker.bus import clock
from broker.bus.breaker import Breaker
from broker.node import metrics

log = structlog.get_logger("node")

CALL_TIMEOUT = 0.05
PREFIX = "okome:cache"


class Bounds(NamedTuple):
    """What one kind of entry may take: bytes per value, entries, seconds."""

    value_bytes: int
    entries: int
    ttl: int


class Kind(Enum):
    """What is cached, and how much of it."""

    PREFIX = "prefix"  # hash of a prompt prefix -> the worker that holds it warm
    TOOL_SCHEMA = "tool_schema"
    EMBEDDING = "embedding"


BOUNDS = {
    Kind.PREFIX: Bounds(128, 100_000, 600),
    Kind.TOOL_SCHEMA: Bounds(256 * 1024, 1_000, 3600),
    Kind.EMBEDDING: Bounds(64 * 1024, 10_000, 3600),
}


class HotCache:
    """Shared by all nodes through one Redis; without a URL everything misses. Never raises for the store's sake."""

    def __init__(self, url: str, bounds: dict[Kind, Bounds] | None = None) -> None:
        self._bounds = bounds or BOUNDS
        self._breaker = Breaker()
        self._redis: Redis | None = None
        if url:
            self._redis = Redis.from_url(
                url, socket_timeout=CALL_TIMEOUT, socket_connect_timeout=CALL_TIMEOUT, max_connections=16, retry=None
            )

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()

    async def get(self, kind: Kind, key: str) -> bytes | None:
        """The value, or None: absent, aged out, or the store did not answer in time."""
        found: bytes | None = None
        outcome = "off"
        if self._redis is not None and self._breaker.allows(now := asyncio.get_running_loop().time()):
            try:
                async with asyncio.timeout(CALL_TIMEOUT):
                    value = await self._redis.get(f"{PREFIX}:{kind.value}:{key}")
                found = value.encode() if isinstance(value, str) else value
                self._breaker.succeeded()
                outcome = "miss" if found is None else "hit"
            except (RedisError, OSError, TimeoutError) as error:
                outcome = self._failed(now, error)
        metrics.cache_requests.labels(kind.value, outcome).inc()
        return found

    async def put(self, kind: Kind, key: str, value: bytes) -> bool:
        """Keep a value; False where it is too large or the store did not take it in time."""
        bounds = self._bounds[kind]
        if len(value) > bounds.value_bytes:
            metrics.cache_requests.labels(kind.value, "too_large").inc()
            return False
        if self._redis is None or not self._breaker.allows(now := asyncio.get_running_loop().time()):
            return False
        # key -> when it was put: who goes first when there are too many; what a node behind has put goes sooner
        order = f"{PREFIX}:{kind.value}"
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                pipe = self._redis.pipeline(transaction=False)
                pipe.set(f"{order}:{key}", value, ex=bounds.ttl)
                pipe.zadd(order, {key: clock.now()})
                pipe.expire(order, bounds.ttl)
                pipe.zrange(order, 0, -(bounds.entries + 1))
                surplus: list[bytes] = (await pipe.execute())[3]
                if surplus:
                    await self._redis.delete(*(f"{order}:{old.decode()}" for old in surplus))
                    await self._redis.zrem(order, *surplus)
            self._breaker.succeeded()
            return True
        except (RedisError, OSError, TimeoutError) as error:
            metrics.cache_requests.labels(kind.value, self._failed(now, error)).inc()
            return False

    def _failed(self, now: float, error: Exception) -> str:
        self._breaker.failed(now)
        log.debug("node.cache_failed", error=type(error).__name__)
        return "failed"

"""How much one caller may ask: sliding windows per credential, per session and per client address.

Counted in Redis or Valkey, so that all ingresses count together. Without it (not configured, or silent for 50 ms) this
process counts alone and grants its share of the quota: quota ÷ live ingresses. Which of the two it is, metrics tell.

Nobody has looked yet whether a credential is good. So a session's requests are counted apart for each that is shown,
or for the address where none is: else whoever knows a session's id could spend what its owner may ask.

Who has asked this process for less than a quarter of that share does not wait for the count (`headroom.py`): it is made
behind the request, for all of one caller's at once. Whoever comes back while thousands of streams run would else wait
longer for it than for the stream. The price: a quota that is spent elsewhere is heard of with the first count that is
refused, and what Redis lost is not counted again, so that each process may grant a quarter of its share too much in a
window. A quota of fewer than a hundred requests is kept to the letter.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import structlog
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError

from broker.bus.breaker import Breaker
from broker.bus.errors import Refusal
from ingress.headers import counted_as
from ingress.headroom import Headroom
from ingress.metrics import Metrics
from ingress.request import Request
from ingress.settings import IngressSettings

log = structlog.get_logger("ingress.limits")

STORE_TIMEOUT = 0.05

KEY, SESSION, IP = "key", "session", "ip"
BEHIND_TIMEOUT = 1.0  # nobody waits for what is counted behind requests
AT_ONCE = 8  # counts that are made at once behind requests
BEHIND_PAUSE = 0.1  # seconds before each: what one caller asks in them, such as all that starts an answer, is one count
MOST_BEHIND = 10_000  # callers whose requests are still to be counted; beyond that each request waits for its own count


Spent = tuple[str, str, float]
"""The limit that is spent, whose, and the seconds to wait."""


def share(item: RateLimitItem, processes: int) -> RateLimitItem:
    """This process's part of a quota, at least 1."""
    return type(item)(max(1, item.amount // max(1, processes)), item.multiples)


class Limits:
    """`peers` tells how many ingresses are live, this one included."""

    def __init__(self, settings: IngressSettings, metrics: Metrics, peers: Callable[[], int] = lambda: 1) -> None:
        chosen = {KEY: settings.key_limit, SESSION: settings.session_limit, IP: settings.ip_limit}
        self._items = {name: parse(text) for name, text in chosen.items() if text}
        self._metrics = metrics
        self._peers = peers
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._breaker = Breaker()
        self._headroom = Headroom()
        self._behind: dict[tuple[str, str], int] = {}  # requests that were granted and are still to be counted
        self._counting: asyncio.Task[None] | None = None
        self._store: RedisStorage | None = None
        if settings.redis_url:
            self._store = RedisStorage(
                f"async+{settings.redis_url}",
                implementation="redispy",
                key_prefix="okome_limit",
                socket_connect_timeout=STORE_TIMEOUT,
                socket_timeout=STORE_TIMEOUT,
                max_connections=64,
            )
            self._shared = SlidingWindowCounterRateLimiter(self._store)
        metrics.limiter_shared.set(self._store is not None)

    async def close(self) -> None:
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)
        if self._store is not None:
            await self._store.bridge.storage.aclose()  # type: ignore[attr-defined]  # no close either
        timer = self._own.storage.timer  # type: ignore[attr-defined]  # the library has no close
        if timer is not None:
            timer.cancel()
            await asyncio.gather(timer, return_exceptions=True)

    async def admit(self, request: Request) -> None:
        """Count one request; raises Refusal `rate_limited` with the seconds after which it is worth another try."""
        shown, address = request.credentials, counted_as(request.ip)
        of_session = [f"{request.sid}/{each}" for each in shown or [address]] if request.sid else []
        callers = [*((KEY, each) for each in shown), *((SESSION, each) for each in of_session), (IP, address)]
        asked = [(name, who) for name, who in callers if who and name in self._items]
        if not asked:
            return
        now = asyncio.get_running_loop().time()
        spent: Spent | tuple[()] | None = None
        if self._store is not None and self._breaker.allows(now):
            if self._has_headroom(asked, now):
                self._count_behind(asked)
                return
            spent = await self._count_shared(asked, now)
        if spent is None:
            spent = await self._count_own(asked)
        if spent:
            self._metrics.limited.labels(spent[0]).inc()
            raise Refusal("rate_limited", f"too many requests per {spent[0]}", retry_after=spent[2])

    async def _count_shared(self, asked: list[tuple[str, str]], now: float) -> Spent | tuple[()] | None:
        """() where nothing is spent; None where the store does not answer."""
        try:
            async with asyncio.timeout(STORE_TIMEOUT):
                spent = await self._count(self._shared, asked, self._items)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            return None
        self._succeeded()
        if spent:
            self._spent(spent[0], spent[1], now)
        return spent

    def _has_headroom(self, asked: list[tuple[str, str]], now: float) -> bool:
        peers = self._peers()
        found = [self._headroom.take(share(self._items[name], peers), name, who, now) for name, who in asked]
        return all(found) and len(self._behind) < MOST_BEHIND

    def _count_behind(self, asked: list[tuple[str, str]]) -> None:
        for one in asked:
            self._behind[one] = self._behind.get(one, 0) + 1
        if self._counting is None or self._counting.done():
            self._counting = asyncio.get_running_loop().create_task(self._catch_up(), name="limits-behind")

    async def _catch_up(self) -> None:
        """Count what was granted before it was counted. What comes meanwhile of one caller is one count. Where the
        store fails, those who are still to be counted are not."""
        while self._behind:
            await asyncio.sleep(BEHIND_PAUSE)
            behind, self._behind = list(self._behind.items()), {}
            for begin in range(0, len(behind), AT_ONCE):
                some = behind[begin : begin + AT_ONCE]
                spending = (self._spend(name, who, count) for (name, who), count in some)
                failed: list[BaseException] = []
                try:
                    async with asyncio.timeout(BEHIND_TIMEOUT):
                        found = await asyncio.gather(*spending, return_exceptions=True)
                    failed = [one for one in found if one is not None]
                except TimeoutError as error:
                    failed = [error]
                if not failed:
                    self._succeeded()
                elif isinstance(failed[0], RedisError | OSError):  # a TimeoutError is one, too
                    self._failed(failed[0])
                    break
                else:
                    raise failed[0]

    async def _spend(self, name: str, who: str, count: int) -> None:
        """The store counts all or nothing: where that is too much, as much as there still is, about."""
        item = self._items[name]
        while count and not await self._shared.hit(item, name, who, cost=count):
            self._spent(name, who, asyncio.get_running_loop().time())
            count //= 2

    def _spent(self, name: str, who: str, now: float) -> None:
        self._headroom.spent(self._items[name], name, who, now)

    def _failed(self, error: BaseException) -> None:
        self._breaker.failed(asyncio.get_running_loop().time())
        self._metrics.limiter_shared.set(0)
        log.warning("limits.store_failed", error=type(error).__name__)

    def _succeeded(self) -> None:
        self._breaker.succeeded()
        self._metrics.limiter_shared.set(1)

    async def _count_own(self, asked: list[tuple[str, str]]) -> Spent | tuple[()]:
        peers = self._peers()
        return await self._count(self._own, asked, {name: share(item, peers) for name, item in self._items.items()})

    @staticmethod
    async def _count(
        limiter: SlidingWindowCounterRateLimiter, asked: list[tuple[str, str]], items: dict[str, RateLimitItem]
    ) -> Spent | tuple[()]:
        granted = await asyncio.gather(*(limiter.hit(items[name], name, who) for name, who in asked))
        for (name, who), ok in zip(asked, granted, strict=True):
            if not ok:
                stats = await limiter.get_window_stats(items[name], name, who)
                wait = stats.reset_time - time.time()  # by the clock that the library has just added to
                return name, who, wait if math.isfinite(wait) and wait > 0 else 1.0
        return ()

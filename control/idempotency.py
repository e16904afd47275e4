"""Doing a thing once under an Idempotency-Key: a repeat gets the first answer, for 24 hours.

The first request reserves the id it will make, then carries it out, then stores the answer. A repeat that comes
meanwhile waits for the answer. If none comes, whoever carried it out is dead: the repeat finishes it, with the same
reserved id, so that what was already made is found and not made twice. Nobody's wall clock is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from broker.bus.begun import begun
from broker.bus.errors import BucketConflict, Refusal
from broker.bus.kv import Bucket, Watch
from broker.bus.nats import Bus
from broker.bus.records import Idempotency, decode, encode

PATIENCE = 3.0  # seconds a repeat waits for the first answer before it takes the work over
TRIES = 5
NOT_ASKED = ("idempotency_key", "warm_worker")
"""What is in a question and not in the client's body: a node's hint is another one once the first answer has ended."""

Answer = TypeVar("Answer", bound=msgspec.Struct)


class Taken(Exception):
    """Somebody else reserved this key at the same time: what was made under our id is to go."""


Reserved = Callable[[], Awaitable[object]]
"""Returns when the id is reserved. Raises Taken, BusError."""


def fingerprint(question: msgspec.Struct) -> str:
    """Of the body: the same question under the same key has the same one."""
    fields = msgspec.to_builtins(question)
    for name in NOT_ASKED:
        fields.pop(name, None)
    return hashlib.sha256(msgspec.json.encode(fields, order="deterministic")).hexdigest()


class Once:
    """Idempotency-Keys in KV."""

    def __init__(self, bus: Bus, patience: float = PATIENCE) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, "idempotency")
        self._patience = patience

    async def do(
        self,
        tenant: str,
        scope: str,
        question: msgspec.Struct,
        idempotency_key: str,
        kind: type[Answer],
        new_id: Callable[[], str],
        check: Callable[[], Coroutine[Any, Any, None]],
        carry_out: Callable[[str, Reserved | None], Awaitable[Answer]],
    ) -> Answer:
        """`carry_out(id, reserved)` awaits `reserved` before it makes what counts; where that is None it must find what
        an earlier attempt with the same id has made. `scope`: operation and session.

        `check` refuses a first request before anything is written. Raises Refusal `idempotency_mismatch` for another
        question under this key. A refusal by `carry_out` is not kept: it made nothing, and may be gone the next time.
        """
        if not idempotency_key:
            await check()
            return await carry_out(new_id(), _at_once)
        key = f"{tenant}.{hashlib.sha256(f'{scope} {idempotency_key}'.encode()).hexdigest()}"
        mine = fingerprint(question)
        for _ in range(TRIES):
            # Beside one another: nearly every request is a first one. What `check` says is nothing to a repeat.
            async with begun(check()) as checking:
                entry = await self._bucket.get(key)
                if entry is None:
                    await checking
            if entry is None:
                with contextlib.suppress(Taken):
                    return await self._first(key, Idempotency(mine, {}, new_id()), kind, carry_out)
                continue
            record = decode(entry.value, Idempotency)
            if record.fingerprint != mine:
                raise Refusal("idempotency_mismatch", "this Idempotency-Key was used for another request")
            if record.answer:
                return msgspec.convert(record.answer, kind)
            if await self._changed(key, entry.revision):
                continue
            try:  # nobody is working on it any more
                revision = await self._bucket.update(key, entry.value, entry.revision)
            except BucketConflict:
                continue
            try:
                answer = await carry_out(record.reserved, None)
            except Refusal:
                await self._forget(key, revision)
                raise
            return await self._keep(key, revision, record, kind, answer)
        raise Refusal("unavailable", "the first request under this Idempotency-Key is still running", retry_after=1)

    async def _first(
        self,
        key: str,
        record: Idempotency,
        kind: type[Answer],
        carry_out: Callable[[str, Reserved | None], Awaitable[Answer]],
    ) -> Answer:
        """Reserve the key while that is carried out which needs no reservation. Raises Taken."""
        async with begun(self._bucket.create(key, encode(record))) as creating:

            async def reserved() -> int:
                try:
                    return await creating
                except BucketConflict as error:
                    raise Taken from error

            try:
                answer = await carry_out(record.reserved, reserved)
            except Refusal:
                await self._forget(key, await reserved())
                raise
            return await self._keep(key, await reserved(), record, kind, answer)

    async def _forget(self, key: str, revision: int) -> None:
        with contextlib.suppress(BucketConflict):  # taken over meanwhile: theirs to answer
            await self._bucket.delete(key, revision)

    async def _keep(self, key: str, revision: int, record: Idempotency, kind: type[Answer], answer: Answer) -> Answer:
        kept: dict[str, Any] = msgspec.to_builtins(answer)
        try:
            await self._bucket.update(key, encode(Idempotency(record.fingerprint, kept, record.reserved)), revision)
        except BucketConflict:
            # We were slow and somebody took over: the answer of both is about the same id, theirs is the kept one.
            entry = await self._bucket.get(key)
            if entry is not None and (other := decode(entry.value, Idempotency)).answer:
                return msgspec.convert(other.answer, kind)
        return answer

    async def _changed(self, key: str, revision: int) -> bool:
        """Whether the entry changed, or went away, before our patience ended."""
        changed = asyncio.Event()

        def look(key: str, value: bytes | None) -> None:
            if watch.seq != revision:
                changed.set()

        watch = Watch(self._bus, self._bucket.name, "once", keys=key, on_change=look)
        await watch.start()
        try:
            async with asyncio.timeout(self._patience):
                await changed.wait()
        except TimeoutError:
            return False
        finally:
            await watch.close()
        return True


async def _at_once() -> None:
    """Nothing is reserved without a key."""

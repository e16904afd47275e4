"""Doing a thing once under an Idempotency-Key: a repeat gets the first answer, for 24 hours.

The first request reserves the id it will make, then carries it out, then stores the answer. A repeat that comes
meanwhile waits for the answer. If none comes, whoever carried it out is dead: the repeat finishes it, with the same
reserved id, so that what was already made is found and not made twice. Nobody's wall clock is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from broker.bus.errors import BucketConflict, Refusal
from broker.bus.kv import Bucket, Watch
from broker.bus.nats import Bus
from broker.bus.records import Idempotency, decode, encode

PATIENCE = 3.0  # seconds a repeat waits for the first answer before it takes the work over
TRIES = 5
NOT_ASKED = ("idempotency_key", "warm_worker")
"""What is in a question and not in the client's body: a node's hint is another one once the first answer has ended."""

Answer = TypeVar("Answer", bound=msgspec.Struct)


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
        check: Callable[[], Awaitable[None]],
        carry_out: Callable[[str], Awaitable[Answer]],
    ) -> Answer:
        """`carry_out(id)` must find what an earlier attempt with the same id has made. `scope`: operation and session.

        `check` refuses a first request before anything is written. Raises Refusal `idempotency_mismatch` for another
        question under this key. A refusal by `carry_out` is not kept: it made nothing, and may be gone the next time.
        """
        if not idempotency_key:
            await check()
            return await carry_out(new_id())
        key = f"{tenant}.{hashlib.sha256(f'{scope} {idempotency_key}'.encode()).hexdigest()}"
        mine = fingerprint(question)
        for _ in range(TRIES):
            entry = await self._bucket.get(key)
            if entry is None:
                await check()
                record = Idempotency(mine, {}, new_id())
                try:
                    revision = await self._bucket.create(key, encode(record))
                except BucketConflict:
                    continue
                return await self._carry_out(key, revision, record, kind, carry_out)
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
            return await self._carry_out(key, revision, record, kind, carry_out)
        raise Refusal("unavailable", "the first request under this Idempotency-Key is still running", retry_after=1)

    async def _carry_out(
        self,
        key: str,
        revision: int,
        record: Idempotency,
        kind: type[Answer],
        carry_out: Callable[[str], Awaitable[Answer]],
    ) -> Answer:
        try:
            answer = await carry_out(record.reserved)
        except Refusal:
            with contextlib.suppress(BucketConflict):  # taken over meanwhile: theirs to answer
                await self._bucket.delete(key, revision)
            raise
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

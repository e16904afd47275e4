"""Buckets: NATS KV over the log verbs. Reads go to the leader, so that compare-and-set does not chase a replica.

The layout is the one of ADR-8 (`$KV.<bucket>.<key>`, header `KV-Operation`), so `nats kv` shows and edits the same
buckets. `Watch` is a `Follow` that keeps a dict: it survives the loss of its consumer, as nats-py's watcher does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import NamedTuple

from broker.bus.errors import BucketConflict, BusUnavailable, StoreRejected, WrongLastSequence
from broker.bus.follow import Follow
from broker.bus.log import Stored, direct_message, get, is_end_of_batch, page, store, stream_info
from broker.bus.nats import Bus

TOO_MANY_RESULTS = "413"
CHANGE_TRIES = 20
PROGRESS_TIMEOUT = 10.0  # seconds without a key, while many are read: the more there are, the longer it takes
SPAN = 4  # times as many sequences as entries are wanted are looked through, and times as many again where they lack
ALL_BYTES = 1024 * 1024  # of values in one direct get


class Entry(NamedTuple):
    value: bytes
    revision: int
    stored_at: str = ""  # by the server's clock, see `Bucket.age`


class Bucket:
    """One bucket. Keys are whole subject tokens separated by dots.

    `deleted_life`: whole seconds for which the bucket remembers what is deleted here, so that watchers who were away
    learn of it (its stream must allow TTLs of messages); 0: until its own TTL, or for ever.
    """

    def __init__(self, bus: Bus, name: str, deleted_life: int = 0) -> None:
        self.name = name
        self.stream = f"KV_{name}"
        self._deletion = {"KV-Operation": "DEL", **({"Nats-TTL": f"{deleted_life}s"} if deleted_life else {})}
        self._bus = bus
        self._prefix = f"$KV.{name}."

    async def get(self, key: str) -> Entry | None:
        """The value at the leader; None where there is none or it was deleted."""
        message = await get(self._bus, self.stream, last_by=self._prefix + key)
        return _entry(message)

    async def age(self, entry: Entry) -> float:
        """Seconds since that revision was stored: from one reading of the server's clock to another one. Ours, and
        that of whoever wrote it, may say what they want."""
        now = (await stream_info(self._bus, self.stream)).now
        return (datetime.fromisoformat(now) - datetime.fromisoformat(entry.stored_at)).total_seconds()

    async def put(self, key: str, value: bytes) -> int:
        """Write, whatever is there; returns the revision."""
        return await store(self._bus, self._prefix + key, value, timeout=2.0)

    async def create(self, key: str, value: bytes) -> int:
        """Write where nothing is, or only a deletion; raises BucketConflict."""
        try:
            return await store(self._bus, self._prefix + key, value, expect_last=0, timeout=2.0)
        except WrongLastSequence as error:
            message = await get(self._bus, self.stream, last_by=self._prefix + key)
            if message is None or _entry(message) is not None:
                raise BucketConflict(self.name, key) from error
            return await self.update(key, value, message.seq)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Write over exactly this revision; raises BucketConflict."""
        try:
            return await store(self._bus, self._prefix + key, value, expect_last=revision, timeout=2.0)
        except WrongLastSequence as error:
            raise BucketConflict(self.name, key) from error

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Delete (over exactly this revision, if given; raises BucketConflict)."""
        try:
            await store(
                self._bus,
                self._prefix + key,
                b"",
                expect_last=revision,
                headers=self._deletion,
                timeout=2.0,
            )
        except WrongLastSequence as error:
            raise BucketConflict(self.name, key) from error

    async def change(
        self, key: str, edit: Callable[[bytes | None], bytes | None], read: Entry | None = None
    ) -> bytes | None:
        """Compare-and-set: `edit` gets the value (None: absent) and returns the new one (None: leave it).

        `edit` may be called several times. `read`: what the caller has read there a moment ago, to be tried first: if
        it has changed, nothing is written over it. Returns what stands there afterwards; raises BusUnavailable when
        others keep winning.
        """
        for _ in range(CHANGE_TRIES):
            entry, read = read or await self.get(key), None
            value = edit(entry.value if entry else None)
            if value is None:
                return entry.value if entry else None
            try:
                if entry is None:
                    await self.create(key, value)
                else:
                    await self.update(key, value, entry.revision)
            except BucketConflict:
                continue
            return value
        raise BusUnavailable(f"{self.name}/{key} is being changed by too many at once")

    async def all(self, keys: str = ">") -> dict[str, Entry]:
        """Every key that matches (NATS wildcards), in no order: one direct get, or a follow beyond 1 024 keys or 1 MiB.

        A replica may answer, so this may be a moment old; compare-and-set is not built on it.
        """
        question = {"multi_last": [self._prefix + keys], "batch": 1024, "max_bytes": ALL_BYTES}
        async with _one_of(self._bus.reads):
            messages = await self._bus.collect(
                f"$JS.API.DIRECT.GET.{self.stream}", json.dumps(question).encode(), is_end_of_batch
            )
        headers = messages[-1].headers or {}
        match headers.get("Status"):
            case "204" if int(headers.get("Nats-Num-Pending", 0)) > 0:
                return await self._all_by_follow(keys)
            case "204" | "404":
                found = [direct_message(message) for message in messages[:-1]]
                return {m.subject.removeprefix(self._prefix): e for m in found if (e := _entry(m)) is not None}
            case status if status == TOO_MANY_RESULTS:
                return await self._all_by_follow(keys)
            case status:
                raise StoreRejected(int(status or 0), headers.get("Description", ""))

    async def newest(self, keys: str, limit: int, before: int = 0) -> dict[str, Entry]:
        """Of the keys that match, the `limit` that were written last, the last one first; of those that were written
        before revision `before`, if that is given. However many there are, a few hundred are read.

        A replica may answer, so this may be a moment old; what is written meanwhile may lack.
        """
        info = await stream_info(self._bus, self.stream)
        end = min(before or info.last_seq + 1, info.last_seq + 1)
        found: dict[str, Entry] = {}
        span = most = SPAN * limit
        dense = end  # from here on are more than `most`
        while end > info.first_seq and len(found) < limit:
            begin = max(info.first_seq, end - span)
            part = await self._written(self._prefix + keys, begin, end, most)
            if part is None:
                dense, span = begin, max(limit, (end - begin) // SPAN)
                continue
            entries = {m.subject.removeprefix(self._prefix): _entry(m) for m in reversed(part)}
            found |= {key: entry for key, entry in entries.items() if entry is not None}
            end = begin
            if end <= dense:
                span *= SPAN
        return dict(list(found.items())[:limit])

    async def _written(self, subject: str, begin: int, end: int, most: int) -> list[Stored] | None:
        """What is stored from one sequence to before another; None where that is more than `most`."""
        found: list[Stored] = []
        while begin < end:
            async with _one_of(self._bus.reads):
                part = await page(self._bus, self.stream, subject, begin - 1, batch=most + 1)
            found += [message for message in part if message.seq < end]
            if len(found) > most:
                return None
            begin = part[-1].seq + 1 if part else end
        return found

    async def each(self, take: Callable[[str, Entry | None], None], keys: str = ">") -> None:
        """Every key that matches, as `all`, but one by one as they come, however many they are: `take(key, entry)` must
        not wait. What is changed meanwhile may come twice; None is a deletion.

        Raises BusUnavailable where nothing came for PROGRESS_TIMEOUT.
        """

        def hear(seq: int, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
            take(subject.removeprefix(self._prefix), _entry(Stored(seq, subject, data, headers)))

        follow = Follow(self._bus, self.stream, [self._prefix + keys], "list", hear, last_per_subject=True)
        async with _one_of(self._bus.long_reads):
            await follow.start()
            try:
                while not follow.caught_up.is_set():
                    seen = follow.seq
                    try:
                        async with asyncio.timeout(PROGRESS_TIMEOUT):
                            await follow.caught_up.wait()
                    except TimeoutError as error:
                        if follow.seq == seen:
                            raise BusUnavailable(f"the keys of {self.name} come no more") from error
            finally:
                await follow.close()

    async def keys(self, keys: str = ">") -> list[str]:
        """The names of those that match, at the leader, and of those that were deleted there and are remembered."""
        found: list[str] = []
        while True:
            question = {"subjects_filter": self._prefix + keys, "offset": len(found)}
            answer = await self._bus.api(f"STREAM.INFO.{self.stream}", question)
            page = answer["state"].get("subjects") or {}
            found += [subject.removeprefix(self._prefix) for subject in page]
            if not page or len(found) >= answer.get("total", 0):
                return found

    async def _all_by_follow(self, keys: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {}

        def take(key: str, entry: Entry | None) -> None:
            if entry is None:
                found.pop(key, None)
            else:
                found[key] = entry

        await self.each(take, keys)
        return found


class Watch:
    """A bucket (or the keys that match) kept in memory. `on_change(key, value)`; value None is a deletion or its age.

    Entries that the bucket forgets by its TTL are not announced by the server: a reader of a bucket with a TTL looks at
    the time inside the record. Where such entries are many, `remember` False keeps none of them here, for ever; then
    `on_change` is all there is, and a bucket that was made anew is not told as the deletion of what the old one had.
    """

    def __init__(
        self,
        bus: Bus,
        bucket: str,
        name: str,
        *,
        keys: str = ">",
        on_change: Callable[[str, bytes | None], None] | None = None,
        remember: bool = True,
    ) -> None:
        self.entries: dict[str, bytes] = {}
        self._remember = remember
        self._bus = bus
        self._prefix = f"$KV.{bucket}."
        self._on_change = on_change
        self._follow = Follow(
            bus,
            f"KV_{bucket}",
            [self._prefix + keys],
            name,
            self._take,
            last_per_subject=True,
            on_replaced=self._forget,
        )

    async def start(self, timeout: float = 10.0) -> None:
        """Returns when everything that is there has been seen; raises BusError."""
        await self._follow.start()
        try:
            async with asyncio.timeout(timeout):
                await self._follow.caught_up.wait()
        except TimeoutError as error:
            await self._follow.close()
            raise BusUnavailable(f"{self._prefix}> was not read in {timeout} s") from error
        except BaseException:  # whoever cancels a start has nothing to close
            await self._follow.close()
            raise

    async def close(self) -> None:
        await self._follow.close()

    @property
    def seq(self) -> int:
        """The last sequence seen."""
        return self._follow.seq

    async def behind(self) -> int:
        """How many sequences the leader is ahead of this watch; a watch that stays behind gets a new consumer."""
        return max(0, (await stream_info(self._bus, self._follow.stream)).last_seq - self._follow.seq)

    def restart(self) -> None:
        self._follow.restart()

    def _forget(self) -> None:
        """The bucket was made anew: nothing of the old one holds."""
        keys, self.entries = list(self.entries), {}
        for key in keys:
            if self._on_change is not None:
                self._on_change(key, None)

    def _take(self, seq: int, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
        key = subject.removeprefix(self._prefix)
        entry = _entry(Stored(seq, subject, data, headers))
        if entry is None:
            self.entries.pop(key, None)
        elif self._remember:
            self.entries[key] = entry.value
        if self._on_change is not None:
            self._on_change(key, entry.value if entry else None)


@contextlib.asynccontextmanager
async def _one_of(slots: asyncio.Semaphore) -> AsyncIterator[None]:
    """Raises BusUnavailable where none is free for PROGRESS_TIMEOUT."""
    try:
        async with asyncio.timeout(PROGRESS_TIMEOUT):
            await slots.acquire()
    except TimeoutError as error:
        raise BusUnavailable("too much is being read at once") from error
    try:
        yield
    finally:
        slots.release()


def _entry(message: Stored | None) -> Entry | None:
    if message is None:
        return None
    headers = message.headers or {}
    if "KV-Operation" in headers or "Nats-Marker-Reason" in headers:
        return None
    return Entry(message.data, message.seq, message.time)

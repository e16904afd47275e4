"""Buckets: compare-and-set that nobody slips through, a watch that outlives its consumer, open to any NATS client."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.errors import KeyNotFoundError

from broker.bus import kv, log
from broker.bus.errors import BucketConflict, BusUnavailable, StoreRejected
from broker.bus.kv import Bucket, Entry, Watch
from broker.bus.nats import Bus
from tests.broker.bus.conftest import eventually, make_bucket, make_stream, restarted
from tests.fixtures.clock import clock_off
from tests.fixtures.nats_server import NatsServer

HEALED = 10.0


async def new(bus: Bus) -> Bucket:
    return Bucket(bus, await make_bucket(bus))


async def test_a_value_comes_back_with_its_revision(bus: Bus) -> None:
    bucket = await new(bus)
    assert await bucket.get("a.b") is None
    first = await bucket.put("a.b", b"1")
    second = await bucket.put("a.b", b"")
    assert second > first
    assert (await bucket.get("a.b") or ())[:2] == (b"", second)


async def test_the_age_of_an_entry_is_told_by_the_server(bus: Bus) -> None:
    """By nobody else's clock: whoever wrote it, and whoever asks, may be minutes off."""
    bucket = await new(bus)
    with clock_off(-240):
        await bucket.put("k", b"1")
    with clock_off(300):
        entry = await bucket.get("k")
        assert entry is not None
        young = await bucket.age(entry)
        assert 0 <= young < 60
        async with asyncio.timeout(HEALED):
            while await bucket.age(entry) <= young:
                continue


async def test_only_the_revision_that_was_read_can_be_written_over(bus: Bus) -> None:
    bucket = await new(bus)
    revision = await bucket.create("k", b"1")
    with pytest.raises(BucketConflict) as caught:
        await bucket.create("k", b"2")
    assert (caught.value.bucket, caught.value.key) == (bucket.name, "k")
    newer = await bucket.update("k", b"2", revision)
    for stale in (revision, 0, newer + 1):
        with pytest.raises(BucketConflict):
            await bucket.update("k", b"3", stale)
    with pytest.raises(BucketConflict):
        await bucket.delete("k", revision)
    await bucket.delete("k", newer)
    assert await bucket.get("k") is None
    await bucket.delete("k")


async def test_create_takes_the_place_of_a_deletion_once(bus: Bus) -> None:
    bucket = await new(bus)
    await bucket.put("k", b"1")
    await bucket.delete("k")
    tries = [bucket.create("k", b"%d" % index) for index in range(5)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, int) for result in results) == 1
    assert all(isinstance(result, int | BucketConflict) for result in results)


async def test_of_many_who_create_one_wins(bus: Bus) -> None:
    bucket = await new(bus)
    results = await asyncio.gather(*(bucket.create("k", b"%d" % index) for index in range(20)), return_exceptions=True)
    (winner,) = (index for index, result in enumerate(results) if isinstance(result, int))
    assert all(isinstance(result, int | BucketConflict) for result in results)
    entry = await bucket.get("k")
    assert entry is not None
    assert entry.value == b"%d" % winner


async def test_no_change_is_lost_when_many_change_at_once(bus: Bus) -> None:
    bucket = await new(bus)

    def add(value: bytes | None) -> bytes:
        return b"%d" % (int(value or b"0") + 1)

    await asyncio.gather(*(bucket.change("n", add) for _ in range(8)))
    entry = await bucket.get("n")
    assert entry is not None
    assert entry.value == b"8"


async def test_a_change_may_leave_it_and_gives_up_against_winners(local_bus: Bus) -> None:
    bucket = await new(local_bus)
    assert await bucket.change("k", lambda _: None) is None
    revision = await bucket.put("k", b"1")
    assert await bucket.change("k", lambda _: None) == b"1"
    assert (await bucket.get("k") or ())[:2] == (b"1", revision)

    class Losing(Bucket):
        async def update(self, key: str, value: bytes, revision: int) -> int:
            raise BucketConflict(self.name, key)

    with pytest.raises(BusUnavailable):
        await Losing(local_bus, bucket.name).change("k", lambda _: b"2")


async def test_a_change_of_what_was_read_before_loses_no_change_since(bus: Bus) -> None:
    bucket = await new(bus)
    await bucket.put("n", b"1")
    read = await bucket.get("n")
    assert await bucket.change("n", lambda value: (value or b"") + b"2", read=read) == b"12"
    assert await bucket.change("n", lambda value: (value or b"") + b"3", read=read) == b"123", "it was tried, and read"
    await bucket.delete("n")
    assert await bucket.change("n", lambda value: value and value + b"4", read=read) is None


async def test_all_is_every_key_that_matches_and_is_not_deleted(bus: Bus) -> None:
    bucket = await new(bus)
    assert await bucket.all() == {}
    for key in ("t1.a", "t1.b", "t2.a", "t1.c"):
        await bucket.put(key, key.encode())
    await bucket.delete("t1.c")
    revision = await bucket.put("t1.a", b"new")
    assert {key: entry.value for key, entry in (await bucket.all()).items()} == {
        "t1.a": b"new",
        "t1.b": b"t1.b",
        "t2.a": b"t2.a",
    }
    found = {key: entry[:2] for key, entry in (await bucket.all("t1.*")).items()}
    assert found == {"t1.a": (b"new", revision), "t1.b": (b"t1.b", 2)}
    assert await bucket.all("t3.*") == {}


async def test_the_newest_are_those_that_were_written_last(local_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few keys among very many others, in one piece among them, spread over them, deleted and written again."""
    bucket = Bucket(local_bus, await make_bucket(local_bus, storage="memory"))
    rng = random.Random(3)
    tenants = ["few"] * 3 + ["many"] * 700 + ["few"] * 40 + rng.choices(["few", "many"], [1, 9], k=700)
    written: dict[str, int] = {}
    for number, tenant in enumerate(tenants):
        key = f"{tenant}.{number % 300}"
        written.pop(key, None)
        written[key] = await bucket.put(key, b"%d" % number)
    for key in rng.sample(list(written), 60):
        await bucket.delete(key)
        del written[key]
    monkeypatch.setattr(log, "PAGE_BYTES", 200)  # an answer is ended by what it weighs, too
    for tenant in ("few", "many", "nobody"):
        newest = [(key, revision) for key, revision in reversed(written.items()) if key.startswith(f"{tenant}.")]
        for limit in (1, 2, 7, 50, 1000):
            found = await bucket.newest(f"{tenant}.*", limit)
            assert [(key, entry.revision) for key, entry in found.items()] == newest[:limit]
        for begin in rng.sample(range(len(newest)), min(8, len(newest))):
            found = await bucket.newest(f"{tenant}.*", 9, before=newest[begin][1])
            assert [(key, entry.revision) for key, entry in found.items()] == newest[begin + 1 : begin + 10]


async def test_the_newest_of_very_many_are_not_looked_for_among_all(local_bus: Bus) -> None:
    bucket = Bucket(local_bus, await make_bucket(local_bus, storage="memory"))
    for start in range(0, 3000, 100):
        await asyncio.gather(*(bucket.put(f"t.{index}", b"") for index in range(start, start + 100)))
    for start in range(0, 3000, 100):
        await asyncio.gather(*(bucket.put(f"other.{index}", b"") for index in range(start, start + 100)))
    read = 0
    plain = local_bus.collect

    async def counted(*asked: Any, **more: Any) -> Any:
        nonlocal read
        messages = await plain(*asked, **more)
        read += len(messages)
        return messages

    local_bus.collect = counted  # type: ignore[method-assign]
    assert len(await bucket.newest("t.*", 50)) == 50
    assert read < 1000


async def test_all_has_every_key_beyond_what_one_answer_holds(local_bus: Bus) -> None:
    """More than 1 024 subjects are refused by the server (413)."""
    bucket = Bucket(local_bus, await make_bucket(local_bus, storage="memory"))
    for start in range(0, 1100, 100):
        await asyncio.gather(*(bucket.put(f"k{index}", b"%d" % index) for index in range(start, start + 100)))
    await bucket.delete("k7")
    found = await bucket.all()
    assert {key: entry.value for key, entry in found.items()} == {
        f"k{index}": b"%d" % index for index in range(1100) if index != 7
    }


async def test_all_has_every_key_beyond_what_one_answer_weighs(local_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends such an answer early, with an ordinary end of batch and what is pending in a header."""
    monkeypatch.setattr(kv, "ALL_BYTES", 10_000)
    bucket = await new(local_bus)
    for index in range(20):
        await bucket.put(f"k{index}", bytes(1000))
    assert len(await bucket.all()) == 20


async def test_keys_may_come_for_as_long_as_they_come(local_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many there are is nobody's fault: a limit for all of them would be reached one day, and for ever."""
    monkeypatch.setattr(kv, "PROGRESS_TIMEOUT", 0.1)
    bucket = await new(local_bus)
    for index in range(100):
        await bucket.put(f"k{index}", b"%d" % index)
    await bucket.delete("k7")
    told: dict[str, Entry | None] = {}
    began = time.monotonic()

    def slowly(key: str, entry: Entry | None) -> None:
        until = time.monotonic() + 0.005
        while time.monotonic() < until:
            pass
        told[key] = entry

    await bucket.each(slowly)
    assert time.monotonic() - began > 3 * kv.PROGRESS_TIMEOUT
    assert {key: entry and entry.value for key, entry in told.items()} == {
        f"k{index}": b"%d" % index if index != 7 else None for index in range(100)
    }


async def test_keys_that_come_no_more_are_not_waited_for(
    fresh_bus: Bus, fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "PROGRESS_TIMEOUT", 0.5)
    bucket = await new(fresh_bus)
    payload = bytes(10_000)
    for index in range(1000):
        await bucket.put(f"k{index}", payload)
    told: list[str] = []

    def freezes(key: str, entry: Entry | None) -> None:
        if not told:
            fresh_nats.freeze()
        told.append(key)

    try:
        with pytest.raises(BusUnavailable):
            await bucket.each(freezes)
    finally:
        fresh_nats.thaw()
    assert 0 < len(told) < 1000


async def test_a_bucket_that_does_not_exist_is_an_error_not_nothing(local_bus: Bus) -> None:
    bucket = Bucket(local_bus, "none")
    with pytest.raises(StoreRejected):
        await bucket.get("k")
    with pytest.raises(BusUnavailable):
        await bucket.all()
    with pytest.raises(BusUnavailable):
        await bucket.put("k", b"")
    with pytest.raises(StoreRejected):
        await Watch(local_bus, "none", "test").start()


async def test_any_nats_client_reads_and_writes_the_same_bucket(bus: Bus, nats_url: str) -> None:
    """nats-py's own KeyValue as the oracle, in both directions."""
    bucket = await new(bus)
    client = Client()
    await client.connect(nats_url)
    theirs = await client.jetstream().key_value(bucket.name)
    revision = await bucket.put("a.b", b"ours")
    entry = await theirs.get("a.b")
    assert (entry.value, entry.revision) == (b"ours", revision)
    await theirs.update("a.b", b"theirs", last=revision)
    assert (await bucket.all())["a.b"].value == b"theirs"
    await bucket.delete("a.b")
    with pytest.raises(KeyNotFoundError):
        await theirs.get("a.b")
    await theirs.create("a.b", b"again")
    seen: list[tuple[str, bytes | None]] = []
    watch = Watch(bus, bucket.name, "test", on_change=lambda key, value: seen.append((key, value)))
    await watch.start()
    await theirs.delete("a.b")
    await theirs.put("c", b"1")
    told = [("a.b", b"again"), ("a.b", None), ("c", b"1")]
    await eventually(lambda: seen == told)  # a bucket keeps the newest only, and need not say what stood there before
    await theirs.purge("c")
    await eventually(lambda: seen == [*told, ("c", None)])
    assert watch.entries == {}
    assert await bucket.get("a.b") is None
    assert await bucket.get("c") is None
    await watch.close()
    await client.close()


async def test_a_deletion_that_has_a_life_is_itself_forgotten(bus: Bus) -> None:
    """Else whatever was deleted would keep a place in the bucket for ever; who watches has learned of it by then."""
    mortal = Bucket(bus, await make_bucket(bus, allow_msg_ttl=True), deleted_life=1)
    watch = Watch(bus, mortal.name, "test")
    await watch.start()
    await mortal.put("other", b"stays")
    await mortal.delete("k", await mortal.put("k", b"1"))
    await eventually(lambda: list(watch.entries) == ["other"] and watch.seq == 3)
    async with asyncio.timeout(HEALED):
        while (await bus.api(f"STREAM.INFO.{mortal.stream}"))["state"]["messages"] > 1:
            continue
    await mortal.create("k", b"again")
    await eventually(lambda: watch.entries == {"other": b"stays", "k": b"again"})
    await watch.close()


async def test_what_a_watch_does_not_remember_it_only_tells(bus: Bus) -> None:
    bucket = await new(bus)
    seen: list[tuple[str, bytes | None]] = []
    watch = Watch(bus, bucket.name, "test", on_change=lambda key, value: seen.append((key, value)), remember=False)
    await bucket.put("a", b"1")
    await watch.start()
    await bucket.delete("a")
    await eventually(lambda: seen == [("a", b"1"), ("a", None)])
    await bucket.put("b", b"2")
    await eventually(lambda: len(seen) == 3)
    assert watch.entries == {}
    watch._forget()
    assert len(seen) == 3, "a bucket that was made anew deletes nothing of what was told"
    await watch.close()


async def test_a_watch_has_what_is_there_and_what_comes(bus: Bus) -> None:
    bucket = await new(bus)
    await bucket.put("t1.a", b"1")
    await bucket.put("t1.a", b"2")
    await bucket.put("t2.a", b"other")
    await bucket.put("t1.gone", b"x")
    await bucket.delete("t1.gone")
    watch = Watch(bus, bucket.name, "test", keys="t1.*")
    await watch.start()
    assert watch.entries == {"t1.a": b"2"}
    await bucket.put("t1.b", b"3")
    await bucket.delete("t1.a")
    await eventually(lambda: watch.entries == {"t1.b": b"3"})
    await watch.close()


async def test_an_empty_bucket_can_be_watched(bus: Bus) -> None:
    bucket = await new(bus)
    watch = Watch(bus, bucket.name, "test")
    await watch.start()
    revision = await bucket.put("a", b"1")
    await eventually(lambda: watch.entries == {"a": b"1"})
    assert watch.seq == revision
    assert await watch.behind() == 0
    await watch.close()


async def test_a_watch_outlives_its_consumer(bus: Bus) -> None:
    """nats-py's watcher would say nothing any more."""
    bucket = await new(bus)
    seen: list[tuple[str, bytes | None]] = []
    watch = Watch(bus, bucket.name, "test", on_change=lambda key, value: seen.append((key, value)))
    await bucket.put("a", b"1")
    await watch.start()
    await bus.api(f"CONSUMER.DELETE.{bucket.stream}.{watch._follow._consumer}")
    await bucket.put("a", b"2")
    await bucket.put("b", b"1")
    await eventually(lambda: watch.entries == {"a": b"2", "b": b"1"}, HEALED)
    assert seen == [("a", b"1"), ("a", b"2"), ("b", b"1")]
    await watch.close()


async def test_a_watch_outlives_its_server(fresh_bus: Bus, fresh_nats: NatsServer) -> None:
    bucket = await new(fresh_bus)
    await bucket.put("a", b"1")
    watch = Watch(fresh_bus, bucket.name, "test")
    await watch.start()
    await restarted(fresh_nats, fresh_bus)
    await bucket.delete("a")
    await bucket.put("b", b"1")
    await eventually(lambda: watch.entries == {"b": b"1"}, HEALED)
    await watch.close()


async def test_a_watch_of_a_bucket_that_was_made_anew_forgets_the_old_one(local_bus: Bus) -> None:
    """Deleted and made again, with fewer changes behind it than the watch has seen: a lost store, restored."""
    bucket = await new(local_bus)
    for index in range(5):
        await bucket.put("gone", b"%d" % index)
    changes: list[tuple[str, bytes | None]] = []
    watch = Watch(local_bus, bucket.name, "test", on_change=lambda key, value: changes.append((key, value)))
    await watch.start()
    await local_bus.api(f"STREAM.DELETE.{bucket.stream}")
    kv = {"max_msgs_per_subject": 1, "discard": "new", "allow_rollup_hdrs": True, "deny_delete": True}
    await make_stream(local_bus, name=bucket.stream, subjects=[f"$KV.{bucket.name}.>"], **kv)
    await bucket.put("here", b"new")
    await eventually(lambda: watch.entries == {"here": b"new"}, HEALED)
    assert ("gone", None) in changes
    await bucket.put("gone", b"again")
    await eventually(lambda: watch.entries == {"here": b"new", "gone": b"again"})
    await watch.close()


async def test_more_than_a_server_holds_for_a_connection_is_read_without_losing_it(bus: Bus) -> None:
    """64 MB are too many for it at once."""
    bucket = await new(bus)
    for number in range(90):
        await bucket.put(f"k.{number}", bytes(1024 * 1024))
    lost: list[bool] = []
    bus.on_reconnected.add(lambda: lost.append(True))
    assert len(await bucket.all("k.*")) == 90
    assert not lost


async def test_few_read_many_keys_at_once_and_who_waits_too_long_is_told(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "PROGRESS_TIMEOUT", 0.2)
    bucket = await new(bus)
    await bucket.put("k.1", b"x")
    for slots, read in ((bus.reads, bucket.all), (bus.long_reads, bucket._all_by_follow)):
        taken = 0
        while not slots.locked():
            await slots.acquire()
            taken += 1
        assert taken > 1
        with pytest.raises(BusUnavailable, match="at once"):
            await read("k.*")
        slots.release()
        for _ in range(2):  # one slot is enough, and given back
            assert list(await read("k.*")) == ["k.1"]


async def test_the_keys_are_listed_without_their_values(bus: Bus) -> None:
    bucket = await new(bus)
    for key in ("a.1", "a.2", "b.1"):
        await bucket.put(key, b"x")
    assert sorted(await bucket.keys("a.*")) == ["a.1", "a.2"]
    assert await bucket.keys("c.*") == []

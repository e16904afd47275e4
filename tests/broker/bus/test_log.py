"""The log verbs: what is stored is read back in order, and every answer of the store has one meaning."""

from __future__ import annotations

import json

import pytest

from broker.bus import log
from broker.bus.errors import BusUnavailable, StoreRejected, WrongLastSequence
from broker.bus.nats import Bus, Heard, Msg
from tests.broker.bus.conftest import DEADLINE, make_stream, restarted
from tests.fixtures.nats_server import NatsServer


async def write(bus: Bus, stream: str, count: int, *, others: int = 1) -> list[int]:
    """`count` messages on `<stream>.a`, each behind `others` on other subjects; their sequences."""
    sequences = []
    for index in range(count):
        for other in range(others):
            await log.store(bus, f"{stream}.b{other}", b"other", timeout=DEADLINE)
        sequences.append(await log.store(bus, f"{stream}.a", b"%d" % index, timeout=DEADLINE))
    return sequences


async def test_a_page_is_what_follows_a_sequence_in_order(bus: Bus) -> None:
    stream = await make_stream(bus)
    sequences = await write(bus, stream, 10)
    for leader in (False, True):
        for after in (0, sequences[3], sequences[3] + 1, sequences[9], sequences[9] + 5):
            expected = [seq for seq in sequences if seq > after][:4]
            found = await log.page(bus, stream, f"{stream}.a", after, batch=4, leader=leader)
            assert [each.seq for each in found] == expected
            assert [each.data for each in found] == [b"%d" % sequences.index(seq) for seq in expected]
            assert {each.subject for each in found} <= {f"{stream}.a"}


async def test_nothing_there_is_a_value(bus: Bus) -> None:
    stream = await make_stream(bus)
    for leader in (False, True):
        assert await log.page(bus, stream, f"{stream}.none", 0, leader=leader) == []
        assert await log.page(bus, stream, f"{stream}.none", 10**15, leader=leader) == []
    assert await log.last(bus, stream, f"{stream}.none") is None
    assert await log.get(bus, stream, 1) is None
    assert await log.read_all(bus, stream, f"{stream}.none") == []


async def test_a_stream_that_does_not_exist_is_an_error_not_nothing(bus: Bus) -> None:
    for ask in (log.last(bus, "NONE", "x"), log.stream_info(bus, "NONE"), log.page(bus, "NONE", "x", 0, leader=True)):
        with pytest.raises(StoreRejected) as caught:
            await ask
        assert caught.value.err_code == log.STREAM_NOT_FOUND
    with pytest.raises(BusUnavailable):
        await log.page(bus, "NONE", "x", 0)


async def test_any_bytes_and_headers_come_back(bus: Bus) -> None:
    stream = await make_stream(bus)
    data = bytes(range(256)) + "früh\r\n\r\n".encode()
    seq = await log.store(bus, f"{stream}.a", data, headers={"X-Note": "a: b"}, msg_id="m1")
    (paged,) = await log.page(bus, stream, f"{stream}.*", 0)
    last = await log.last(bus, stream, f"{stream}.a")
    assert last is not None
    for found in (paged, last):
        assert (found.seq, found.subject, found.data) == (seq, f"{stream}.a", data)
        assert found.headers is not None
        assert (found.headers["X-Note"], found.headers["Nats-Msg-Id"]) == ("a: b", "m1")
    assert await log.page(bus, stream, f"{stream}.a", 0, bare=True) == [log.Stored(seq, f"{stream}.a", data)]


async def test_the_sequence_of_a_paged_message_is_the_servers_word(bus: Bus) -> None:
    """Not a header of that name that it was stored with."""
    stream = await make_stream(bus)
    await write(bus, stream, 3, others=0)
    seq = await log.store(bus, f"{stream}.b", b"x", headers={"Nats-Sequence": "1", "X": "Nats-Sequence: 2"})
    for bare in (True, False):
        assert [found.seq for found in await log.page(bus, stream, f"{stream}.b", 0, bare=bare)] == [seq]


async def test_an_empty_message_is_not_the_end_of_a_page(bus: Bus) -> None:
    stream = await make_stream(bus)
    for _ in range(3):
        await log.store(bus, f"{stream}.a", b"", headers={"X": "y"})
    assert len(await log.page(bus, stream, f"{stream}.a", 0)) == 3


async def test_a_page_is_bounded_in_bytes_and_has_at_least_one_message(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "PAGE_BYTES", 2500)
    stream = await make_stream(bus)
    for size in (1000, 1000, 1000, 1000, 9000, 1000):
        await log.store(bus, f"{stream}.a", b"x" * size)
    lengths, after = [], 0
    while page := await log.page(bus, stream, f"{stream}.a", after):
        lengths.append(len(page))
        after = page[-1].seq
    assert sum(lengths) == 6
    assert max(lengths) < 6
    assert len(await log.read_all(bus, stream, f"{stream}.a")) == 6


async def test_the_same_message_id_is_stored_once(bus: Bus) -> None:
    stream = await make_stream(bus)
    assert await log.store(bus, f"{stream}.a", b"1", msg_id="g1") == await log.store(
        bus, f"{stream}.a", b"1", msg_id="g1"
    )
    assert (await log.stream_info(bus, stream)).messages == 1


async def test_read_all_is_everything_over_many_pages(bus: Bus) -> None:
    stream = await make_stream(bus)
    sequences = await write(bus, stream, 2 * log.PAGE + 5, others=0)
    found = await log.read_all(bus, stream, f"{stream}.a")
    assert [each.seq for each in found] == sequences
    assert [each.seq for each in await log.read_all(bus, stream, f"{stream}.a", sequences[70])] == sequences[71:]
    assert [each.seq for each in await log.read_all(bus, stream, f"{stream}.a", limit=70)] == sequences[:70]


async def test_read_all_asks_the_leader_when_replicas_lag(local_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that has nothing yet says 404, which is not the end of the log."""
    stream = await make_stream(local_bus)
    sequences = await write(local_bus, stream, 5)
    lagged: list[int] = []
    collect = Bus.collect

    async def lagging(self: Bus, subject: str, payload: bytes, *args: object, **kwargs: object) -> list[Heard]:
        lagged.append(json.loads(payload)["seq"])
        return [Heard("", "", b"", b"NATS/1.0 404 Message Not Found\r\n\r\n")]

    monkeypatch.setattr(Bus, "collect", lagging)
    found = await log.read_all(local_bus, stream, f"{stream}.a")
    assert [each.seq for each in found] == sequences
    assert len(lagged) == 3
    monkeypatch.setattr(Bus, "collect", collect)


async def test_read_all_gives_up_on_a_hole_that_nobody_fills(local_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = await make_stream(local_bus)
    await write(local_bus, stream, 3)

    async def empty(*_: object, **__: object) -> list[log.Stored]:
        return []

    monkeypatch.setattr(log, "page", empty)
    with pytest.raises(BusUnavailable, match="no message after 0"):
        await log.read_all(local_bus, stream, f"{stream}.a")


async def test_a_full_stream_says_so(bus: Bus) -> None:
    """Its answer has the code 503 like "no leader", but it is an answer: a publisher would ask again for ever."""
    stream = await make_stream(bus, discard="new", max_msgs=2)
    await write(bus, stream, 1)
    with pytest.raises(StoreRejected) as caught:
        await log.store(bus, f"{stream}.a", b"x")
    assert caught.value.err_code == log.STREAM_FULL


async def test_the_leaders_word_on_a_stream(bus: Bus) -> None:
    stream = await make_stream(bus, metadata={"incarnation": "k3d8"}, max_bytes=1_000_000)
    empty = await log.stream_info(bus, stream)
    assert (empty.incarnation, empty.last_seq, empty.max_bytes) == ("k3d8", 0, 1_000_000)
    sequences = await write(bus, stream, 3)
    info = await log.stream_info(bus, stream)
    assert (info.first_seq, info.last_seq, info.messages) == (1, sequences[-1], sequences[-1])
    assert info.created == empty.created


def answer(data: bytes = b"", status: str = "", **error: object) -> Heard:
    """An answer as the wire hands it over."""
    body = data or json.dumps({"error": error, "stream": "S", "seq": 0}).encode()
    return Heard("", "", b"", f"NATS/1.0 {status}\r\n\r\n".encode()) if status else Heard("", "", body)


@pytest.mark.parametrize(
    ("msg", "meaning"),
    [
        (None, BusUnavailable),
        (answer(status="503"), BusUnavailable),
        (answer(code=503, err_code=10008, description="JetStream system temporarily unavailable"), BusUnavailable),
        (answer(code=503, err_code=10009, description="stream has no leader"), BusUnavailable),
        (answer(code=429, err_code=10167, description="too many requests"), BusUnavailable),
        (answer(code=400, err_code=10071, description="wrong last sequence: 41"), WrongLastSequence),
        (answer(code=400, err_code=10164, description="wrong last sequence"), WrongLastSequence),
        (answer(code=503, err_code=10077, description="maximum messages exceeded"), StoreRejected),
        (answer(code=400, err_code=10054, description="message size exceeds maximum allowed"), StoreRejected),
        (answer(data=b"hello"), StoreRejected),
        (answer(data=b'{"stream":"S","seq":"x"}'), StoreRejected),
    ],
)
def test_every_answer_has_one_meaning(msg: Heard | None, meaning: type[Exception]) -> None:
    """Undecided is what may be asked again behind the same fence; everything else is a verdict."""
    assert type(log.read_ack(msg)) is meaning


def test_the_fence_tells_the_last_sequence_where_the_server_does() -> None:
    told = log.read_ack(answer(code=400, err_code=10071, description="wrong last sequence: 41"))
    assert isinstance(told, WrongLastSequence)
    assert told.last == 41
    busy = log.read_ack(answer(code=400, err_code=10164, description="wrong last sequence"))
    assert isinstance(busy, WrongLastSequence)
    assert busy.last is None
    assert log.read_ack(answer(data=b'{"stream":"S","seq":7,"duplicate":true}')) == 7


async def test_what_is_acknowledged_survives_a_kill(fresh_bus: Bus, fresh_nats: NatsServer) -> None:
    stream = await make_stream(fresh_bus)
    sequences = await write(fresh_bus, stream, 5, others=0)
    await restarted(fresh_nats, fresh_bus)
    found = await log.read_all(fresh_bus, stream, f"{stream}.a")
    assert [each.seq for each in found] == sequences
    with pytest.raises(WrongLastSequence):
        await log.store(fresh_bus, f"{stream}.a", b"x", expect_last=sequences[-2])


@pytest.mark.parametrize(
    ("err_code", "meaning"), [(10008, BusUnavailable), (10009, BusUnavailable), (10059, StoreRejected)]
)
async def test_a_cluster_that_is_not_ready_has_refused_nothing(
    local_bus: Bus, err_code: int, meaning: type[Exception]
) -> None:
    """10008 "temporarily unavailable" is met while a cluster elects: who makes streams then asks again."""

    async def played(msg: Msg) -> None:
        error = {"code": 503, "err_code": err_code, "description": "as a server says it"}
        await local_bus.publish(msg.reply, json.dumps({"error": error}).encode())

    await local_bus.subscribe(f"$JS.API.PLAYED.{err_code}", played)
    with pytest.raises(meaning):
        await local_bus.api(f"PLAYED.{err_code}")

"""Floors: a log that is not the one it was gets another name, once, whoever notices."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.bus.kv import Bucket
from broker.bus.log import StreamInfo, logged_partitions, store, stream_info
from control.floors import Decision, Floor, decide, keep_floors
from control.provisioning import provision
from tests.control.okome import connected, replica, settings, until
from tests.fixtures.nats_server import NatsServer


def stream(last: int, incarnation: str = "aaaa") -> StreamInfo:
    return StreamInfo(incarnation, 1, last, last, 0, 0, "", "")


def test_the_first_look_at_an_empty_log_only_remembers() -> None:
    assert decide(None, stream(0), "ffff", "monday") == Decision(Floor(0, "aaaa", "", "monday"), "")


def test_a_log_with_frames_and_no_floor_has_lost_its_floor() -> None:
    """Nobody writes before the first look, so what was seen beyond cannot be told any more."""
    assert decide(None, stream(7), "ffff", "monday") == Decision(Floor(7, "ffff", "aaaa", "monday", True), "ffff")


def test_another_start_of_the_stores_machine_changes_the_incarnation_though_the_log_is_beyond_its_floor() -> None:
    """The floor is some seconds old, and what was written since may have been lost and written anew."""
    old = Floor(5, "aaaa", "", "monday")
    assert decide(old, stream(7), "ffff", "tuesday") == Decision(Floor(7, "ffff", "aaaa", "tuesday", True), "ffff")
    assert decide(old, stream(5), "ffff", "monday") == Decision(None, "")
    assert decide(old, stream(5), "ffff") == Decision(None, "")  # not told: not a start
    assert decide(old, stream(7), "ffff") == Decision(Floor(7, "aaaa", "", "monday"), "")


def test_the_first_start_that_is_told_is_remembered() -> None:
    assert decide(Floor(5, "aaaa"), stream(5), "ffff", "monday") == Decision(Floor(5, "aaaa", "", "monday"), "")


def test_a_log_that_grew_raises_the_floor() -> None:
    assert decide(Floor(5, "aaaa"), stream(7), "ffff") == Decision(Floor(7, "aaaa"), "")
    assert decide(Floor(7, "aaaa"), stream(7), "ffff") == Decision(None, "")


def test_a_log_below_its_floor_gets_another_incarnation() -> None:
    assert decide(Floor(9, "aaaa"), stream(7), "ffff") == Decision(Floor(7, "ffff", "aaaa", cut=True), "ffff")


def test_half_a_change_is_finished_with_what_was_decided() -> None:
    assert decide(Floor(7, "ffff", "aaaa"), stream(7), "gggg") == Decision(None, "ffff")


def test_a_log_made_anew_keeps_the_incarnation_it_was_made_with() -> None:
    assert decide(Floor(9, "aaaa"), stream(0, "bbbb"), "ffff") == Decision(Floor(0, "bbbb"), "")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_whatever_a_log_does_it_keeps_its_name_while_it_grows_and_changes_it_when_it_shrinks(
    lengths: list[int],
) -> None:
    floor: Floor | None = None
    name, seen = "i0", 0
    for index, length in enumerate(lengths, 1):
        decision = decide(floor, stream(length, name), f"i{index}")
        shrank = length < seen if floor is not None else length > 0
        assert bool(decision.incarnation) == shrank
        name, seen, floor = decision.incarnation or name, length, decision.floor or floor
        assert floor is not None
        floor = replace(floor, cut=False)  # restored


async def test_a_log_that_lost_its_end_changes_its_incarnation_once_for_all_replicas(fresh_nats: NatsServer) -> None:
    async with replica(fresh_nats.url, partitions=1, reconcile_interval=60), connected(fresh_nats.url) as bus:
        before = await stream_info(bus, "TOK_00")
        secrets = Bucket(bus, "secrets")
        await store(bus, "tok.00.00abcdefgh", b"x")
        await keep_floors(bus, ["00"])
        entry = await secrets.get("floor.00")
        assert entry is not None
        assert b'"seq":1' in entry.value
        # as if the log had been restored to an earlier state
        await secrets.put("floor.00", b'{"seq":1000,"incarnation":"%s"}' % before.incarnation.encode())
        await asyncio.gather(*(keep_floors(bus, ["00"]) for _ in range(4)))
        after = await stream_info(bus, "TOK_00")
        assert after.incarnation != before.incarnation
        await keep_floors(bus, ["00"])
        assert (await stream_info(bus, "TOK_00")).incarnation == after.incarnation


async def test_floors_are_kept_of_logs_in_which_no_session_is_born_any_more(fresh_nats: NatsServer) -> None:
    """A system that was told of fewer partitions goes on with the sessions of the others."""
    async with connected(fresh_nats.url) as bus:
        await provision(bus, settings(fresh_nats.url, partitions=3))
        assert await logged_partitions(bus) == ["00", "01", "02"]
        async with replica(fresh_nats.url, partitions=1, reconcile_interval=0.2) as okome:
            assert okome.partitions == ["00"]
            await store(bus, "tok.02.02abcdefgh", b"x")
            secrets = Bucket(bus, "secrets")

            async def raised() -> bool:
                entry = await secrets.get("floor.02")
                return entry is not None and b'"seq":1' in entry.value

            await until(raised, "the floor of partition 02 is raised")


async def test_a_removed_stream_comes_back_under_another_incarnation(fresh_nats: NatsServer) -> None:
    async with replica(fresh_nats.url, partitions=1), connected(fresh_nats.url) as bus:
        before = await stream_info(bus, "TOK_00")
        await bus.api("STREAM.DELETE.TOK_00")

        async def back() -> bool:
            answer = await bus.api("STREAM.NAMES")
            return "TOK_00" in answer["streams"]

        await until(back, "TOK_00 is made again")
        assert (await stream_info(bus, "TOK_00")).incarnation not in ("", before.incarnation)

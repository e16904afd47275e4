"""What was left behind is named, and what came back is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from compose.chaos import gauges
from compose.chaos.round import Round
from compose.chaos.scenarios import leaving
from compose.chaos.scenarios.leaving import _comparable
from compose.chaos.subject import Running
from compose.chaos.whole import Process, until


def test_what_is_higher_than_before_is_named_with_both_values() -> None:
    before = {"node-1": {"okome_tasks": 23.0, 'okome_node_subscribers{transport="ws"}': 1.0}}
    after = {"node-1": {"okome_tasks": 22.0, 'okome_node_subscribers{transport="ws"}': 3.0}}
    assert gauges.left(before, after) == ['node-1: okome_node_subscribers{transport="ws"} 3, before 1']


def test_a_gauge_that_was_not_there_before_was_zero() -> None:
    """Gauges with labels appear with their first value."""
    assert gauges.left({"node-1": {}}, {"node-1": {"okome_node_tails": 1.0}}) == [
        "node-1: okome_node_tails 1, before 0"
    ]


def test_only_the_gauges_that_are_asked_for_count_and_memory_never_by_itself() -> None:
    before = {"node-1": {gauges.RSS: 1.0, gauges.FDS: 1.0, "okome_tasks": 1.0}}
    after = {"node-1": {gauges.RSS: 2.0, gauges.FDS: 2.0, "okome_tasks": 2.0}}
    assert gauges.left(before, after, [gauges.FDS]) == ["node-1: fds 2, before 1"]
    assert gauges.left(before, after, [gauges.RSS]) == ["node-1: rss_bytes 2, before 1"]
    assert gauges.left(before, after) == ["node-1: fds 2, before 1", "node-1: okome_tasks 2, before 1"]


def test_a_process_that_is_new_has_left_nothing() -> None:
    assert gauges.left({}, {"node-3": {"okome_tasks": 20.0}}) == []


def test_a_gauge_is_summed_over_processes_and_labels() -> None:
    reading = {
        "node-1": {'okome_node_subscribers{transport="ws"}': 1.0, 'okome_node_subscribers{transport="sse"}': 2.0},
        "node-2": {'okome_node_subscribers{transport="ws"}': 4.0, "okome_node_subscribers_of_another_name": 9.0},
    }
    assert gauges.total(reading, "okome_node_subscribers") == 7


def test_a_leaked_file_counts_and_a_pooled_connection_to_redis_does_not() -> None:
    before = {"node-1": {gauges.FDS: 20.0}, "redis-1": {gauges.FDS: 9.0}, "nats-1": {gauges.FDS: 60.0}}
    pooled = {"node-1": {gauges.FDS: 23.0}, "redis-1": {gauges.FDS: 12.0}, "nats-1": {gauges.FDS: 99.0}}
    leaked = {"node-1": {gauges.FDS: 24.0}, "redis-1": {gauges.FDS: 12.0}, "nats-1": {gauges.FDS: 60.0}}
    assert gauges.left(_comparable(before), _comparable(pooled)) == []
    assert gauges.left(_comparable(before), _comparable(leaked)) == ["roles: fds 12, before 11"]


def test_who_did_not_answer_is_named_and_not_taken_for_one_that_holds_nothing() -> None:
    """A node that is dead, or too busy to answer; JetStream is asked as well. The kernel's word is not its own."""
    running = [
        Process("node-1", "node", 1, 0, "http://127.0.0.1:1"),
        Process("nats-1", "nats", 2, 0, "http://127.0.0.1:2"),
        Process("redis-1", "redis", 3, 0, ""),
    ]
    system = cast(Running, SimpleNamespace(processes=lambda: running))
    kernel = {gauges.RSS: 1.0, gauges.FDS: 2.0}
    told = {
        "node-1": {**kernel, "okome_tasks": 2.0},
        "nats-1": {**kernel, "connections": 1.0},
        "redis-1": kernel,
        gauges.JETSTREAM: {gauges.CONSUMERS: 1.0},
    }
    assert gauges.silent(system, told) == []
    assert gauges.silent(system, {**told, "node-1": kernel}) == ["node-1"]
    assert gauges.silent(system, {"redis-1": kernel}) == ["node-1", "nats-1", gauges.JETSTREAM]


async def test_what_a_process_holds_that_does_not_answer_has_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is compared with a reading in which it had not answered."""
    node = Process("node-1", "node", 1, 0, "http://127.0.0.1:1")
    dumb = {"node-1": {gauges.FDS: 1.0}, gauges.JETSTREAM: {gauges.CONSUMERS: 1.0}}
    complete = {**dumb, "node-1": {gauges.FDS: 1.0, "okome_node_tails": 1.0}}
    readings = iter([dumb, complete])

    async def read(system: object) -> gauges.Reading:
        return next(readings, dumb)

    monkeypatch.setattr(gauges, "read", read)
    monkeypatch.setattr(leaving, "BACK_TIMEOUT", 0.5)
    round = cast(Round, SimpleNamespace(system=SimpleNamespace(processes=lambda: [node], until=until)))
    assert await leaving._read(round) == complete
    assert await leaving._left(round, complete) == ["node-1 did not tell what it holds"]

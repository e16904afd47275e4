"""The worker decides whether an engine pauses, and silence never pauses."""

from __future__ import annotations

from gpu_worker.arbiter import FLOWING, LAGGING, Arbiter


def test_silence_never_pauses() -> None:
    arbiter = Arbiter(20)
    assert not arbiter.paused(0)
    arbiter.hear("n1", LAGGING, 0)
    assert arbiter.paused(1)
    assert arbiter.changes_at() == 5
    assert not arbiter.paused(5), "a node that fell silent does not count"
    assert arbiter.resumed_by == "silence"


def test_one_that_flows_keeps_it_going_for_all() -> None:
    arbiter = Arbiter(20)
    arbiter.hear("n1", LAGGING, 0)
    arbiter.hear("n2", FLOWING, 0)
    assert not arbiter.paused(0)
    arbiter.hear("n2", LAGGING, 1)
    assert arbiter.paused(1)
    arbiter.hear("n1", FLOWING, 2)
    assert not arbiter.paused(2)
    assert arbiter.resumed_by == "viewers"


def test_a_node_that_fell_silent_does_not_hold_up_a_pause() -> None:
    arbiter = Arbiter(20)
    arbiter.hear("n1", FLOWING, 0)
    arbiter.hear("n2", LAGGING, 4)
    assert not arbiter.paused(4)
    assert arbiter.paused(5)


def test_a_pause_never_lasts_longer_than_max_pause_and_needs_a_flow_before_the_next() -> None:
    arbiter = Arbiter(20)
    for second in range(0, 20, 2):
        arbiter.hear("n1", LAGGING, second)
        assert arbiter.paused(second)
    arbiter.hear("n1", LAGGING, 20)
    assert not arbiter.paused(20)
    assert arbiter.resumed_by == "max_pause"
    arbiter.hear("n1", LAGGING, 22)
    assert not arbiter.paused(22), "max_pause is over: it goes on whatever they say"
    arbiter.hear("n1", FLOWING, 24)
    arbiter.hear("n1", LAGGING, 26)
    assert arbiter.paused(26)


def test_what_is_not_demand_is_not_heard() -> None:
    arbiter = Arbiter(20)
    arbiter.hear("n1", "sleepy", 0)
    assert not arbiter.paused(0)
    assert not arbiter.abandoned(30, 100)


def test_abandoned_means_that_there_were_viewers_and_all_are_silent() -> None:
    arbiter = Arbiter(20)
    assert not arbiter.abandoned(30, 1000), "nobody ever watched"
    arbiter.hear("n1", FLOWING, 10)
    assert not arbiter.abandoned(30, 39)
    assert arbiter.abandoned(30, 40)

"""Who ended by itself is named, and who was ended is not, however late its restart is seen."""

from __future__ import annotations

from compose.chaos.deaths import Deaths
from compose.chaos.whole import Process


def node(restarts: int = 0, pid: int = 0, role: str = "node") -> Process:
    return Process(f"{role}-1", role, pid or 100 + restarts, restarts, "")


def test_a_restart_that_no_fault_explains_is_named_once() -> None:
    deaths = Deaths([node(3)])
    assert deaths.by_themselves([node(3)], []) == []
    assert deaths.by_themselves([node(4)], []) == [node(4)]
    assert deaths.by_themselves([node(4)], []) == []


def test_one_that_was_killed_may_be_restarted_once_and_not_twice() -> None:
    deaths = Deaths([node()])
    assert deaths.by_themselves([node(1)], [node()]) == []
    assert deaths.by_themselves([node(3)], [node(1)]) == [node(3)]


def test_a_restart_may_be_seen_a_round_later() -> None:
    deaths = Deaths([node()])
    assert deaths.by_themselves([node()], [node()]) == []
    assert deaths.by_themselves([node(1)], []) == []
    assert deaths.by_themselves([node(2)], []) == [node(2)]


def test_one_process_ends_once_whatever_strikes_it() -> None:
    """A server that was asked to leave and then killed."""
    deaths = Deaths([node()])
    assert deaths.by_themselves([node(1)], [node(), node()]) == []
    assert deaths.by_themselves([node(2)], []) == [node(2)]


def test_restarts_count_anew_where_the_supervisor_was_started_again() -> None:
    deaths = Deaths([node(2)])
    assert deaths.by_themselves([node()], []) == []
    assert deaths.by_themselves([node(1)], []) == [node(1)]


def test_engines_are_their_workers_affair() -> None:
    assert Deaths([node(role="engine")]).by_themselves([node(1, role="engine")], []) == []

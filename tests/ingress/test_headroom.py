"""Who is far from a limit does not wait for the count; who may not be, does."""

from __future__ import annotations

import pytest
from limits import parse

from ingress import headroom
from ingress.headroom import Headroom


def taken(room: Headroom, count: int, limit: str = "100/minute", who: str = "k", now: float = 0.0) -> list[bool]:
    return [room.take(parse(limit), "key", who, now) for _ in range(count)]


def test_a_quarter_of_a_quota_is_headroom() -> None:
    room = Headroom()
    assert taken(room, 27) == [True] * 25 + [False] * 2
    assert taken(room, 1, who="other") == [True]


def test_a_small_quota_is_kept_to_the_letter() -> None:
    assert taken(Headroom(), 2, "99/minute") == [False] * 2


def test_a_new_window_is_a_new_quarter() -> None:
    room = Headroom()
    taken(room, 30)
    assert taken(room, 1, now=59.9) == [False]
    assert taken(room, 26, now=60.0) == [True] * 25 + [False]


def test_who_is_said_to_have_spent_his_quota_has_none_for_as_long_as_a_window() -> None:
    room, item = Headroom(), parse("100/minute")
    taken(room, 1)
    room.spent(item, "key", "k", 50.0)
    room.spent(item, "key", "nobody that is known", 50.0)
    assert taken(room, 1, now=109.9) == [False]
    assert taken(room, 1, now=110.0) == [True]


def test_those_whose_window_is_over_are_forgotten() -> None:
    room = Headroom()
    for second in range(200):
        taken(room, 1, who=f"k{second}", now=float(second))
    assert len(room) == 60


def test_callers_beyond_the_bound_have_none_until_others_windows_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headroom, "MOST", 2)
    room = Headroom()
    assert taken(room, 1, who="a") + taken(room, 1, who="b", now=30.0) == [True, True]
    assert taken(room, 1, who="c", now=59.0) == [False]
    assert taken(room, 1, who="b", now=59.0) == [True], "who is known still has his"
    assert taken(room, 1, who="c", now=60.0) == [True], "the first one's window is over"

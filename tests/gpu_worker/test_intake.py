"""What a worker asks for: no more than it can begin, never more than it can hold, and something of its lane."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.intake import LANE_CREDITS, Credits, lane_credits, share


@given(slots=st.integers(1, 100), queue_limit=st.integers(0, 100), held=st.integers(0, 250), aside=st.integers(0, 250))
def test_what_is_asked_for_is_what_can_be_begun_and_something_of_the_lane(
    slots: int, queue_limit: int, held: int, aside: int
) -> None:
    aside = min(aside, held)
    wanted = share(slots, queue_limit, held, aside)
    assert held + wanted.any + wanted.lane <= max(held, slots + queue_limit)
    assert wanted.any <= max(0, slots - (held - aside)), "a job is asked for that has no slot"
    if held <= slots:
        assert wanted.any >= slots - held, "a slot is kept free"
    if held <= slots and not aside:
        assert wanted.lane == lane_credits(slots, queue_limit), "the lane is never without"


def test_a_lane_has_credits_of_its_own() -> None:
    assert lane_credits(4, 16) == 5
    assert share(4, 16, 0) == Credits(4, 5)
    assert share(4, 16, 4) == Credits(0, 5)
    assert share(4, 16, 3) == Credits(1, 5)
    assert share(4, 16, 18) == Credits(0, 2)
    assert lane_credits(1, 1) == 1
    assert lane_credits(4, 10_000) == LANE_CREDITS


def test_slots_are_for_the_common_queue() -> None:
    """A worker where none may wait has no lane, one where few may wait no more credits for it."""
    assert lane_credits(1, 0) == lane_credits(10_000, 0) == 0
    assert lane_credits(100, 2) == 2
    assert share(4, 0, 0) == Credits(4, 0)

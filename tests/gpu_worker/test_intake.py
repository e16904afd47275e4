"""Credits: what is held and what is promised never exceed the capacity, and no lane starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.intake import LANE_CREDITS, Credits, lane_credits, share

NONE = Credits(0, 0)


@given(
    slots=st.integers(1, 100),
    queue_limit=st.integers(0, 100),
    steps=st.lists(st.sampled_from(["any", "lane", "done"]), max_size=300),
)
def test_held_and_promised_never_exceed_the_capacity(slots: int, queue_limit: int, steps: list[str]) -> None:
    capacity, goal = slots + queue_limit, lane_credits(slots, queue_limit)
    held, promised = 0, share(capacity, goal, 0, NONE)
    for step in steps:
        if step == "any" and promised.any:
            held, promised = held + 1, promised._replace(any=promised.any - 1)
        elif step == "lane" and promised.lane:
            held, promised = held + 1, promised._replace(lane=promised.lane - 1)
        elif step == "done" and held:
            held -= 1
            before, promised = promised, share(capacity, goal, held, promised)
            assert promised.any >= before.any, "a pull cannot be taken back"
            assert promised.lane >= before.lane
        assert held + promised.any + promised.lane <= capacity
        assert held + promised.any >= slots, "a slot is kept free for a lane by which nothing may come"
    promised = share(capacity, goal, held, promised)
    assert held + promised.any + promised.lane == capacity, "all of the room is offered"


def test_a_lane_keeps_credits_of_its_own() -> None:
    assert lane_credits(4, 16) == 5
    assert share(20, 5, 0, NONE) == Credits(15, 5)
    assert share(20, 5, 15, Credits(0, 4)) == Credits(0, 5)
    assert lane_credits(1, 1) == 1
    assert lane_credits(4, 10_000) == LANE_CREDITS


def test_slots_are_for_the_common_queue() -> None:
    """A worker where none may wait has no lane, one where few may wait no more credits for it."""
    assert lane_credits(1, 0) == lane_credits(10_000, 0) == 0
    assert lane_credits(100, 2) == 2
    assert share(4, 0, 0, NONE) == Credits(4, 0)

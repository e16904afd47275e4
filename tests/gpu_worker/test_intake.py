"""Credits: what is held and what is promised never exceed the capacity, and no lane starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.intake import LANE_CREDITS, Credits, has_lane, share


@given(capacity=st.integers(1, 200), steps=st.lists(st.sampled_from(["any", "lane", "done"]), max_size=300))
def test_held_and_promised_never_exceed_the_capacity(capacity: int, steps: list[str]) -> None:
    held, promised = 0, share(capacity, 0, Credits(0, 0))
    for step in steps:
        if step == "any" and promised.any:
            held, promised = held + 1, promised._replace(any=promised.any - 1)
        elif step == "lane" and promised.lane:
            held, promised = held + 1, promised._replace(lane=promised.lane - 1)
        elif step == "done" and held:
            held -= 1
            before, promised = promised, share(capacity, held, promised)
            assert promised.any >= before.any, "a pull cannot be taken back"
            assert promised.lane >= before.lane
        assert held + promised.any + promised.lane <= capacity
    promised = share(capacity, held, promised)
    assert held + promised.any + promised.lane == capacity, "all of the room is offered"


def test_a_lane_keeps_credits_of_its_own() -> None:
    assert share(20, 0, Credits(0, 0)) == Credits(15, 5)
    assert share(20, 15, Credits(0, 4)) == Credits(0, 5)
    assert share(10_000, 0, Credits(0, 0)).lane == LANE_CREDITS


def test_room_for_one_is_for_the_common_queue() -> None:
    assert not has_lane(1)
    assert share(1, 0, Credits(0, 0)) == Credits(1, 0)

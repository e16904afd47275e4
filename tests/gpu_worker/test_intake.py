"""What a worker asks for: no more than it can begin, never more than it can hold, and something of its lane."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.intake import LANE_CREDITS, Credits, lane_credits, share

NONE = Credits(0, 0)


@given(
    slots=st.integers(1, 100),
    queue_limit=st.integers(0, 100),
    steps=st.lists(st.sampled_from(["any", "lane", "done", "any over", "lane over"]), max_size=300),
)
def test_held_and_asked_for_never_exceed_the_capacity(slots: int, queue_limit: int, steps: list[str]) -> None:
    """A pull cannot be taken back, and what it may still bring counts until it is over."""
    held = 0
    wanted = asked = share(slots, queue_limit, 0, NONE)
    for step in steps:
        match step:
            case "any" if asked.any:
                held, asked = held + 1, asked._replace(any=asked.any - 1)
            case "lane" if asked.lane:
                held, asked = held + 1, asked._replace(lane=asked.lane - 1)
            case "done" if held:
                held -= 1
            case "any over":
                asked = asked._replace(any=wanted.any)
            case "lane over":
                asked = asked._replace(lane=wanted.lane)
        wanted = share(slots, queue_limit, held, asked)
        asked = Credits(max(asked.any, wanted.any), max(asked.lane, wanted.lane))
        assert held + asked.any + asked.lane <= slots + queue_limit
        assert wanted.any == max(0, slots - held), "a slot is kept free, or a job asked for that has none"
    wanted = share(slots, queue_limit, held, wanted)
    if held <= slots:
        assert wanted.lane == lane_credits(slots, queue_limit), "the lane is never without"


def test_a_lane_has_credits_of_its_own() -> None:
    assert lane_credits(4, 16) == 5
    assert share(4, 16, 0, NONE) == Credits(4, 5)
    assert share(4, 16, 4, Credits(0, 4)) == Credits(0, 5)
    assert share(4, 16, 3, Credits(4, 5)) == Credits(1, 5)
    assert share(4, 16, 14, Credits(4, 5)) == Credits(0, 2)
    assert lane_credits(1, 1) == 1
    assert lane_credits(4, 10_000) == LANE_CREDITS


def test_slots_are_for_the_common_queue() -> None:
    """A worker where none may wait has no lane, one where few may wait no more credits for it."""
    assert lane_credits(1, 0) == lane_credits(10_000, 0) == 0
    assert lane_credits(100, 2) == 2
    assert share(4, 0, 0, NONE) == Credits(4, 0)

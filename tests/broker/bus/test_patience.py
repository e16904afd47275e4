"""How long a connection waits for the answer to a publish."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.bus.patience import LEAST, MOST, Patience


class Known(Patience):
    """Whose answers come far enough from one another that each counts."""

    now = 0.0

    def heard(self, took: float) -> None:
        self.now += LEAST
        self.answered(took, self.now)


TIMES = st.floats(min_value=0, max_value=60, allow_nan=False)


def test_nothing_known_is_waited_for_longest() -> None:
    assert Patience().seconds == MOST


def test_quick_answers_make_it_short_and_the_second_wait_in_vain_doubles_it() -> None:
    """The first: whoever was asked may just have left, which makes nobody slower."""
    patience = Known()
    for _ in range(20):
        patience.heard(0.002)
    assert patience.seconds == LEAST
    patience.in_vain()
    assert patience.seconds == LEAST
    patience.in_vain()
    assert patience.seconds == 2 * LEAST
    patience.heard(0.002)
    assert patience.seconds == LEAST


def test_a_path_that_became_slower_is_followed_before_it_times_out_again_and_again() -> None:
    """Else every publish of an overloaded system would be made twice, which is how it stays overloaded."""
    patience = Known()
    for _ in range(50):
        patience.heard(0.002)
    in_vain = 0
    for _ in range(100):
        while patience.seconds < 0.3:
            patience.in_vain()
            in_vain += 1
        patience.heard(0.3)
    assert in_vain <= 5


def test_a_burst_is_one_answer_and_its_slowest_counts() -> None:
    """A step of an engine is a thousand publishes at once, of which the last is answered long behind the first. Counted
    one by one, the first answers to the next step would be all that is known, and most of it would be made twice."""
    patience = Known()
    for _ in range(20):
        patience.heard(0.001)
        for number in range(1, 1000):
            patience.answered(number / 4000, patience.now + number / 20_000)
    assert patience.seconds >= 0.25


@given(st.lists(TIMES | st.none()))
def test_it_stays_between_its_bounds(history: list[float | None]) -> None:
    patience = Known()
    for took in history:
        if took is None:
            patience.in_vain()
        else:
            patience.heard(took)
        assert LEAST <= patience.seconds <= MOST


@given(st.floats(min_value=0, max_value=MOST), st.integers(min_value=10, max_value=100))
def test_what_takes_always_as_long_is_never_given_up(took: float, times: int) -> None:
    patience = Known()
    for _ in range(times):
        patience.heard(took)
        assert patience.seconds >= took

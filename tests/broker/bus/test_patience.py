"""How long a connection waits for the answer to a publish."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.bus.patience import LEAST, MOST, Patience

TIMES = st.floats(min_value=0, max_value=60, allow_nan=False)


def test_nothing_known_is_waited_for_longest() -> None:
    assert Patience().seconds == MOST


def test_quick_answers_make_it_short_and_the_second_wait_in_vain_doubles_it() -> None:
    """The first: whoever was asked may just have left, which makes nobody slower."""
    patience = Patience()
    for _ in range(20):
        patience.answered(0.002)
    assert patience.seconds == LEAST
    patience.in_vain()
    assert patience.seconds == LEAST
    patience.in_vain()
    assert patience.seconds == 2 * LEAST
    patience.answered(0.002)
    assert patience.seconds == LEAST


def test_a_path_that_became_slower_is_followed_before_it_times_out_again_and_again() -> None:
    """Else every publish of an overloaded system would be made twice, which is how it stays overloaded."""
    patience = Patience()
    for _ in range(50):
        patience.answered(0.002)
    in_vain = 0
    for _ in range(100):
        while patience.seconds < 0.3:
            patience.in_vain()
            in_vain += 1
        patience.answered(0.3)
    assert in_vain <= 5


@given(st.lists(TIMES | st.none()))
def test_it_stays_between_its_bounds(history: list[float | None]) -> None:
    patience = Patience()
    for took in history:
        if took is None:
            patience.in_vain()
        else:
            patience.answered(took)
        assert LEAST <= patience.seconds <= MOST


@given(st.floats(min_value=0, max_value=MOST), st.integers(min_value=10, max_value=100))
def test_what_takes_always_as_long_is_never_given_up(took: float, times: int) -> None:
    patience = Patience()
    for _ in range(times):
        patience.answered(took)
        assert patience.seconds >= took

"""When the tokens of a script are due."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from broker.bus.script import Script
from gpu_worker.engines.schedule import MAX_PIECE, Step, schedule, spread

scripts = st.builds(
    Script,
    tokens=st.integers(0, 300),
    rate=st.one_of(st.just(0.0), st.floats(0.1, 1000)),
    seed=st.integers(0, 2**53 - 1),
    burst=st.integers(1, 200),
    jitter=st.floats(0, 1),
    stall_at=st.none() | st.integers(0, 320),
    stall_ms=st.integers(0, 1000),
    ttft_ms=st.integers(0, 1000),
    fail_at=st.none() | st.integers(0, 320),
    broken_at=st.none() | st.integers(0, 320),
)


@given(scripts, st.integers(0, 320))
def test_every_token_once_in_order_in_small_pieces(script: Script, first: int) -> None:
    """The steps cover every token up to the end, or up to the failure, once; time never runs back."""
    steps = list(schedule(script, first, script.tokens))
    fails = script.fail_at is not None and first <= script.fail_at < script.tokens
    until = script.fail_at if fails else script.tokens
    assert [i for s in steps for i in range(s.first, s.first + s.n)] == list(range(first, until or 0))
    assert [s.n == 0 for s in steps] == [False] * (len(steps) - fails) + [True] * fails
    assert all(s.n <= MAX_PIECE and s.due >= 0 for s in steps)
    assert all(a.due <= b.due for a, b in pairwise(steps))
    assert all(s.n <= 1 for s in steps if script.broken_at in range(s.first, s.first + s.n)), "nothing comes with it"


@given(scripts.filter(lambda s: s.fail_at is None), st.integers(1, 300))
def test_a_takeover_keeps_the_pace_of_the_uninterrupted_answer(script: Script, first: int) -> None:
    """From its second step on, an epoch that begins at token `first` has the gaps it would have had."""

    def due(begin: int) -> dict[int, float]:
        return {i: s.due for s in schedule(script, begin, script.tokens) for i in range(s.first, s.first + s.n)}

    whole, rest = due(0), due(first)
    shift = whole[first] if rest else 0.0
    assert all(abs(rest[i] - (whole[i] - shift)) < 1e-6 for i in rest)
    assert not rest or rest[first] == 0.0


def test_rate_burst_and_time_to_first_token() -> None:
    """Bursts are `burst / rate` apart and begin at ttft."""
    script = Script(tokens=5, rate=10, burst=2, ttft_ms=300)
    assert [(round(s.due, 6), s.first, s.n) for s in schedule(script, 0, 5)] == [(0.3, 0, 2), (0.5, 2, 2), (0.7, 4, 1)]


def test_a_stall_comes_before_its_token_and_delays_all_later_ones() -> None:
    """A burst is cut where the stall begins."""
    script = Script(tokens=4, rate=0, stall_at=2, stall_ms=500)
    assert list(schedule(script, 0, 4)) == [Step(0.0, 0, 2), Step(0.5, 2, 2)]
    assert list(schedule(script, 2, 4)) == [Step(0.0, 2, 2)]


def test_it_fails_at_the_moment_its_token_was_due() -> None:
    """The failing step carries no token and has that token's time; an epoch that begins there fails at once."""
    script = Script(tokens=9, rate=10, fail_at=2)
    assert [(round(s.due, 6), s.n) for s in schedule(script, 0, 9)] == [(0.0, 1), (0.1, 1), (0.2, 0)]
    assert list(schedule(script, 2, 9)) == [Step(0.0, 2, 0)]


def test_jitter_keeps_the_mean() -> None:
    """The spread is seeded, within ±1, and even."""
    drawn = [spread(7, group) for group in range(10_000)]
    assert all(-1 <= value < 1 for value in drawn)
    assert abs(sum(drawn) / len(drawn)) < 0.02
    assert drawn[:5] == [spread(7, group) for group in range(5)] != [spread(8, group) for group in range(5)]

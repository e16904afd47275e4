"""A worker with very many tokens makes fewer frames of them, and only then."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.cadence import CALM, LEFT, LONGEST, MOMENTS, STEP, WINDOW, Cadence

ABOVE = 12_000


def running(answers: int, *, least: float = 0.0, above: int = ABOVE) -> Cadence:
    cadence = Cadence(least, above)
    for _ in range(answers):
        cadence.enter()
    cadence.stored(0, 1000.0)  # the window begins
    return cadence


def told(cadence: Cadence, rate: float, seconds: int, since: float = 1000.0) -> float:
    """Tokens at `rate` per second, for so many windows; the time afterwards."""
    for second in range(1, seconds + 1):
        cadence.stored(int(rate * WINDOW), since + second * WINDOW)
    return since + seconds * WINDOW


def test_every_token_is_its_own_frame_until_there_are_very_many() -> None:
    cadence = running(1000)
    told(cadence, ABOVE - 1, 5)
    assert cadence.interval == 0.0


def test_above_that_an_answer_has_one_frame_per_interval() -> None:
    cadence = running(480)
    told(cadence, ABOVE + 1, 1)
    assert cadence.interval == 0.1, "480 answers in 0.1 s are 4 800 frames a second"
    many = running(5000)
    told(many, 100_000, 1)
    assert many.interval == LONGEST


def test_who_leaves_makes_room() -> None:
    cadence = running(960)
    now = told(cadence, 20_000, 1)
    assert cadence.interval == LONGEST
    for _ in range(480):
        cadence.leave()
    told(cadence, 20_000, 1, now)
    assert cadence.interval == 0.1


def test_few_answers_that_are_very_fast_do_not_wait_for_each_other() -> None:
    cadence = running(10)
    told(cadence, 50_000, 3)
    assert cadence.interval == 0.0


def test_it_does_not_go_to_and_fro_at_the_edge() -> None:
    cadence = running(480)
    now = told(cadence, ABOVE + 1, 1)
    now = told(cadence, ABOVE * CALM + 1, 5, now)
    assert cadence.interval == 0.1
    told(cadence, ABOVE * CALM - 1, 1, now)
    assert cadence.interval == 0.0


def test_after_silence_nobody_collects_for_what_was_before() -> None:
    cadence = running(480)
    now = told(cadence, 20_000, 1)
    cadence.stored(1, now + 3600)
    assert cadence.interval == 0.1, "nothing is known of what is to be: a log may just have come back"
    cadence.stored(1, now + 3600 + WINDOW)
    assert cadence.interval == 0.0


def test_where_nobody_streams_nothing_collects() -> None:
    cadence = running(480)
    now = told(cadence, 20_000, 1)
    for _ in range(480):
        cadence.leave()
    assert cadence.interval == 0.0
    cadence.enter()
    told(cadence, ABOVE * CALM + 1, 1, now)
    assert cadence.interval == 0.0, "calm as at first"


def test_one_who_wants_fewer_frames_has_them_whatever_the_load() -> None:
    cadence = running(480, least=0.15)
    assert cadence.interval == 0.15
    now = told(cadence, 20_000, 1)
    assert cadence.interval == 0.15, "more than the load asks for"
    told(cadence, 1, 1, now)
    assert cadence.interval == 0.15


def test_never_means_never() -> None:
    cadence = running(5000, above=0)
    told(cadence, 1_000_000, 3)
    assert cadence.interval == 0.0


@given(answers=st.integers(1, 20_000), rate=st.floats(1, 1e6))
def test_what_is_left_is_what_was_wanted_and_no_token_waits_long(answers: int, rate: float) -> None:
    cadence = running(answers)
    told(cadence, rate, 1)
    wanted = min(answers / (ABOVE * LEFT), LONGEST) if int(rate) > ABOVE else 0.0
    assert abs(wanted - cadence.interval) <= STEP / 2 + 1e-9
    assert 0.0 <= cadence.interval <= LONGEST


@given(interval=st.floats(0.02, 1.0), sent=st.floats(0, 1e6))
def test_the_next_frame_goes_at_a_moment_near_the_interval_s_end(interval: float, sent: float) -> None:
    cadence = Cadence(interval)
    due = cadence.due(sent)
    assert abs(due - sent - interval) <= interval / MOMENTS / 2 + 1e-6
    assert abs(cadence.due(due) - due - interval) < 1e-6, "the moment after one is an interval later"

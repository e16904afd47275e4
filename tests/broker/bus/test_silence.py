"""Silence is believed quickly the first time, slowly when it keeps coming, never when it may be our own."""

from broker.bus.silence import CALM, LONGEST, MISSED, Silence

BEAT = 0.05


def _silent_for(silence: Silence, start: float, limit: float = 10.0) -> float:
    """Seconds of silence from `start` on until it is believed, looked at once in a heartbeat."""
    silence.hear(start)
    now = start
    while now < start + limit:
        now += BEAT
        if silence.look(now):
            return now - start
    return limit


def test_two_missed_heartbeats_are_enough() -> None:
    silence = Silence(BEAT, 0.0)
    assert MISSED * BEAT < _silent_for(silence, 0.0) <= (MISSED + 2) * BEAT


def test_one_that_is_heard_is_never_gone() -> None:
    silence = Silence(BEAT, 0.0)
    for step in range(1, 200):
        silence.hear(step * BEAT)
        assert not silence.look(step * BEAT)


def test_whoever_stood_still_itself_waits_again() -> None:
    silence = Silence(BEAT, 0.0)
    assert not silence.look(5.0)
    assert not silence.look(5.0 + BEAT)
    assert silence.look(5.0 + 2 * BEAT) or silence.look(5.0 + 3 * BEAT)


def test_silence_that_keeps_coming_is_believed_ever_later_and_quickly_again_after_calm() -> None:
    silence = Silence(BEAT, 0.0)
    now, waited = 0.0, []
    for _ in range(8):
        took = _silent_for(silence, now)
        now += took
        silence.gone(now)
        waited.append(round(took, 3))
    assert waited == sorted(waited)
    assert LONGEST < waited[-1] <= LONGEST + 3 * BEAT
    silence.gone(now + CALM + 1)
    assert _silent_for(silence, now + CALM + 2) <= (MISSED + 3) * BEAT

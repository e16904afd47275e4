"""▸ Who could not hear must not call others silent: one worker, so that nothing else excuses it."""

from broker.bus.observer import SILENCE, STALLED
from tests.broker.bus.test_observer import STEP, Room, beat, reply


def test_after_standing_still_a_single_silent_worker_is_given_a_full_second() -> None:
    room = Room()
    room.run(1, beat("w", {"g": reply(1)}))
    room.now += 2.5  # this process was stopped; the worker's beats wait in its socket
    assert room.step() == []
    assert room.run(5, beat("w", {"g": reply(1)})) == []


def test_after_standing_still_a_worker_that_stays_silent_is_suspected_a_second_later() -> None:
    room = Room()
    room.run(1, beat("w", {"g": reply(1)}))
    room.now += 2.5
    assert room.step() == []
    assert [nak.gid for nak in room.run(2)] == ["g"]


def test_an_echo_that_took_long_proves_nothing_of_the_time_before_it() -> None:
    """The server stood still, and may read our socket before the suspect's."""
    room = Room()
    for _ in range(4):
        room.step(beat("w", {"g": reply(1)}))
        room.observer.on_echo(room.now)
    assert [nak.gid for nak in room.run(SILENCE)] == []
    room.now += STEP
    room.observer.on_echo(room.now)  # the first one since
    assert room.observer.suspects(room.now, True) == []
    assert room.observer.hearing_since == room.now
    for _ in range(round(SILENCE / STEP)):
        assert room.step() == []
        room.observer.on_echo(room.now)
    assert [nak.gid for nak in room.step()] == ["g"]
    assert STEP < STALLED < SILENCE

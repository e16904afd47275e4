"""▸ Who could not hear must not call others silent: one worker, so that nothing else excuses it."""

from tests.broker.bus.test_observer import Room, beat, reply


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

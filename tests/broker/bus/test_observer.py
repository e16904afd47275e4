"""Observers: a dead worker's jobs are given back once, a living worker's never."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.bus.observer import OVERDUE, SILENCE, STALE, Nak, Observer, delivery_order
from broker.bus.records import Beat, Load

STEP = 0.25


def reply(stream_sequence: int, delivered: int = 1) -> str:
    return f"$JS.ACK.JOBS.any_m.{delivered}.{stream_sequence}.7.1700000000000000000.0"


def beat(worker: str, held: dict[str, str] | None = None, instance: str = "1", models: bool = True) -> Beat:
    load = {"m": Load(slots=1, running=0, queued=0, queue_limit=4)} if models else {}
    return Beat(worker=worker, instance=f"{worker}/{instance}", t=0, models=load, held=held or {})


class Room:
    """One observer (`a`, first in rank) and a clock that beats and asks every 250 ms."""

    def __init__(self, observer_id: str = "a") -> None:
        self.observer = Observer(observer_id)
        self.now = 100.0

    def step(self, *beats: Beat, round_trip_ok: bool = True) -> list[Nak]:
        self.now += STEP
        for each in beats:
            self.observer.on_beat(each, self.now)
        return self.observer.suspects(self.now, round_trip_ok)

    def run(self, seconds: float, *beats: Beat, round_trip_ok: bool = True) -> list[Nak]:
        return [nak for _ in range(round(seconds / STEP)) for nak in self.step(*beats, round_trip_ok=round_trip_ok)]


def test_a_worker_silent_for_one_second_loses_its_jobs_once() -> None:
    room = Room()
    room.run(1, beat("w", {"g1": reply(1), "g2": reply(2)}), beat("x"))
    assert room.run(SILENCE, beat("x")) == []
    assert room.step(beat("x")) == [Nak(reply(1), "g1", "w"), Nak(reply(2), "g2", "w")]
    assert room.run(20, beat("x")) == []


def test_the_only_worker_can_be_suspected() -> None:
    """`several` begins at two: one machine with one worker must not wait for ack_wait."""
    room = Room()
    room.run(1, beat("w", {"g": reply(1)}))
    assert room.run(SILENCE + STEP) == [Nak(reply(1), "g", "w")]


def test_a_beating_worker_is_never_suspected() -> None:
    room = Room()
    assert room.run(30, beat("w", {"g": reply(1)}), beat("x")) == []


def test_a_false_suspicion_is_forgiven_by_the_next_beat() -> None:
    room = Room()
    room.run(1, beat("w", {"g": reply(1)}), beat("x"))
    assert len(room.run(2, beat("x"))) == 1
    assert room.run(5, beat("w", {"g": reply(1)}), beat("x")) == []
    assert len(room.run(2, beat("x"))) == 1


def test_an_observer_whose_round_trip_fails_suspects_nobody() -> None:
    room = Room()
    room.run(1, beat("w", {"g": reply(1)}), beat("x"))
    assert room.run(4, round_trip_ok=False) == []
    # hearing again: everybody gets a full second from here
    assert room.run(SILENCE, beat("x")) == []
    assert room.run(1, beat("x")) == [Nak(reply(1), "g", "w")]


def test_an_observer_that_stood_still_suspects_nobody_for_what_it_could_not_hear() -> None:
    room = Room()
    room.run(1, beat("w", {"g": reply(1)}), beat("x"))
    room.now += 10  # its process was stopped; the beats wait in the socket
    assert room.step() == []
    assert room.run(5, beat("w", {"g": reply(1)}), beat("x")) == []


def test_two_of_four_workers_falling_silent_together_are_not_suspected() -> None:
    room = Room()
    everybody = [beat(name, {f"g{name}": reply(i)}) for i, name in enumerate("wxyz")]
    room.run(1, *everybody)
    assert room.run(30, *everybody[2:]) == []


def test_two_of_five_workers_falling_silent_together_are_suspected() -> None:
    room = Room()
    everybody = [beat(name, {f"g{name}": reply(i)}) for i, name in enumerate("vwxyz")]
    room.run(1, *everybody)
    assert {nak.worker for nak in room.run(3, *everybody[2:])} == {"v", "w"}


def test_workers_falling_silent_one_after_the_other_are_suspected() -> None:
    room = Room()
    both = [beat("w", {"g1": reply(1)}), beat("x", {"g2": reply(2)})]
    room.run(1, *both)
    assert [nak.worker for nak in room.run(3, both[1])] == ["w"]
    assert [nak.worker for nak in room.run(2)] == ["x"]


def test_okome_replicas_are_not_counted_among_the_workers() -> None:
    room = Room()
    replicas = [beat(f"okome-{i}", models=False) for i in range(5)]
    room.run(1, *replicas, beat("w", {"g1": reply(1)}), beat("x", {"g2": reply(2)}))
    assert room.run(30, *replicas) == []


def test_only_the_first_ranked_live_observer_naks() -> None:
    room = Room("m")
    room.run(1, beat("b"), beat("w", {"g": reply(1)}))
    assert room.run(STALE + 2, beat("b")) == []


def test_the_suspect_itself_does_not_rank() -> None:
    room = Room("m")
    room.run(1, beat("b", {"g": reply(1)}), beat("x"))
    assert room.run(2, beat("x")) == [Nak(reply(1), "g", "b")]


def test_when_the_first_in_rank_dies_with_the_suspect_the_next_one_naks() -> None:
    room = Room("m")
    room.run(1, beat("b", {"g1": reply(1)}), beat("c", {"g2": reply(2)}), beat("x"), beat("y"), beat("z"))
    assert {nak.worker for nak in room.run(2, beat("x"), beat("y"), beat("z"))} == {"b", "c"}


def test_an_observer_that_becomes_first_late_leaves_old_suspicions_alone() -> None:
    """The first in rank has done it long ago: the delivery is somebody else's by now."""
    room = Room("m")
    room.run(1, beat("b"), beat("w", {"g": reply(1)}), beat("x"), beat("y"))
    room.run(STALE + 2, beat("b"), beat("x"), beat("y"))
    assert room.run(3, beat("x"), beat("y")) == []


def test_another_instance_under_the_same_id_means_the_first_is_dead_at_once() -> None:
    room = Room()
    room.run(1, beat("w", {"g": reply(1)}), beat("x"))
    assert room.observer.on_beat(beat("w", instance="2"), room.now)
    assert room.step(beat("x")) == [Nak(reply(1), "g", "w")]
    assert room.run(2, beat("w", instance="2"), beat("x")) == []


def test_a_late_beat_of_a_dead_instance_is_not_heard() -> None:
    room = Room()
    room.run(1, beat("w", {"g": reply(1)}), beat("x"))
    room.step(beat("w", {"g": reply(1, 2)}, instance="2"), beat("x"))
    assert room.run(3, beat("w", {"g": reply(1)}, instance="1"), beat("w", {"g": reply(1, 2)}, instance="2")) == []


def test_workers_that_died_together_lose_their_jobs_when_they_come_back() -> None:
    """Both were killed and nobody was suspected; their successors prove it."""
    room = Room()
    room.run(1, beat("w", {"g1": reply(1)}), beat("x", {"g2": reply(2)}))
    assert room.run(10) == []
    assert room.step(beat("w", instance="2")) == [Nak(reply(1), "g1", "w")]


def test_a_delivery_that_somebody_else_holds_newer_is_left_alone() -> None:
    room = Room()
    room.run(1, beat("w", {"g": reply(1, 1), "h": reply(2, 1)}), beat("x", {"g": reply(1, 2)}))
    assert room.run(2, beat("x", {"g": reply(1, 2)})) == [Nak(reply(2, 1), "h", "w")]


def test_an_older_delivery_elsewhere_does_not_protect() -> None:
    """A fenced worker may go on beating with the delivery it lost."""
    room = Room()
    room.run(1, beat("w", {"g": reply(1, 2)}), beat("x", {"g": reply(1, 1)}))
    assert room.run(2, beat("x", {"g": reply(1, 1)})) == [Nak(reply(1, 2), "g", "w")]


def test_deliveries_are_ordered_by_stream_sequence_then_count_in_both_ack_formats() -> None:
    v1 = "$JS.ACK.JOBS.any_m.3.41.7.1700000000000000000.0"
    v2 = "$JS.ACK._.acct.JOBS.any_m.3.41.7.1700000000000000000.0.rand"
    assert delivery_order(v1) == delivery_order(v2) == (41, 3)
    assert delivery_order("_INBOX.x") < delivery_order(v1)


@settings(max_examples=150, deadline=None)
@given(
    silent=st.lists(st.tuples(st.integers(0, 5), st.integers(4, 40), st.integers(1, 40)), max_size=6),
    deaf=st.lists(st.tuples(st.integers(4, 40), st.integers(1, 8)), max_size=2),
)
def test_whoever_was_heard_within_a_second_keeps_its_jobs(
    silent: list[tuple[int, int, int]], deaf: list[tuple[int, int]]
) -> None:
    """Nobody beating loses a job, nobody naks while deaf, and no delivery is given back twice in one silence."""
    room = Room()
    names = [f"w{i}" for i in range(6)]
    last = dict.fromkeys(names, 0.0)
    naked: set[str] = set()
    for step in range(80):
        quiet = {names[i] for i, start, length in silent if start <= step < start + length}
        hears = not any(start <= step < start + length for start, length in deaf)
        heard = [name for name in names if name not in quiet and hears]
        for name in heard:
            last[name] = room.now + STEP
            naked.discard(name)
        naks = room.step(*[beat(name, {f"g{name}": reply(1)}) for name in heard], round_trip_ok=hears)
        assert hears or not naks
        for nak in naks:
            assert room.now - last[nak.worker] > SILENCE
            assert nak.worker not in naked
            naked.add(nak.worker)


@settings(max_examples=150, deadline=None)
@given(start=st.integers(8, 16), dead=st.integers(0, 4), offsets=st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_observers_who_hear_the_same_give_each_delivery_back_exactly_once(
    start: int, dead: int, offsets: list[int]
) -> None:
    """One of five workers dies; the others all observe, each asking at its own moments."""
    names = [f"w{i}" for i in range(5)]
    observers = {name: Observer(name) for name in names}
    naks: list[Nak] = []
    for tick in range(140):  # 62.5 ms each
        now = 100 + tick * STEP / 4
        for name, offset in zip(names, offsets, strict=True):
            if (tick + offset) % 4 or (tick >= start and name == names[dead]):
                continue
            for observer in observers.values():
                observer.on_beat(beat(name, {f"g{name}": reply(1)}), now)
            naks += observers[name].suspects(now, True)
    assert naks == [Nak(reply(1), f"gw{dead}", f"w{dead}")]


def test_the_beats_within_a_time_are_known() -> None:
    room = Room()
    room.run(1, beat("w"), beat("x"))
    room.run(2, beat("x"))
    assert set(room.observer.beats(room.now)) == {"x"}
    assert set(room.observer.beats(room.now, within=10)) == {"w", "x"}
    assert room.observer.live(room.now) == ["a", "x"]
    assert OVERDUE < SILENCE

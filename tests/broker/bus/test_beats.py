"""A beat in parts is the same beat, or none: what a worker holds is never told by halves."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from broker.bus.beats import PART_BYTES, Parts, more, split
from broker.bus.observer import Observer
from broker.bus.records import Beat, Load, decode, encode

SMALL = 1500  # bytes
LOAD = {"m": Load(4, 1, 0, 4)}


def beat(held: int, t: int = 1, worker: str = "w1", instance: str = "one") -> Beat:
    jobs = {f"g{number}": f"$JS.ACK.JOBS.any_m.1.{number}.{number}.1700000000000000000.0" for number in range(held)}
    return Beat(worker, instance, t, LOAD, jobs, ["warm"])


@given(st.integers(0, 400), st.integers(1, 20_000))
def test_parts_are_small_and_together_the_beat(held: int, limit: int) -> None:
    whole = beat(held)
    parts = split(whole, limit)
    smallest = len(encode(beat(1))) + 40  # one job is never cut
    assert all(len(encode(part)) <= max(limit + 40, smallest) for part in parts)
    joined = Parts()
    found = [joined.take(decode(encode(part), Beat)) for part in parts]
    assert found == [None] * (len(parts) - 1) + [whole]


def test_an_ordinary_beat_is_one_message_as_ever() -> None:
    whole = beat(1000)
    assert split(whole) == [whole]
    assert len(encode(whole)) < PART_BYTES


def test_a_beat_of_which_a_part_was_missed_was_not_heard_and_the_next_one_is() -> None:
    for missed in range(3):
        joined = Parts()
        parts = split(beat(60, t=1), SMALL)[:3]
        assert len(parts) == 3
        rest = [part for number, part in enumerate(parts) if number != missed]
        assert [joined.take(part) for part in rest] == [None, None]
        assert [whole for part in split(beat(60, t=2), SMALL) if (whole := joined.take(part))] == [beat(60, t=2)]


def test_parts_of_different_beats_instances_and_workers_are_not_mixed() -> None:
    old, new = split(beat(60, t=1), SMALL), split(beat(60, t=2), SMALL)
    reborn = split(beat(60, t=1, instance="two"), SMALL)
    other = split(beat(60, t=1, worker="w2"), SMALL)
    for later in (new, reborn):
        joined = Parts()
        assert joined.take(old[0]) is None
        assert all(joined.take(part) is None for part in later[1:])
    joined = Parts()
    mixed = [part for pair in zip(old, other, strict=True) for part in pair]
    found = [whole for part in mixed if (whole := joined.take(part))]
    assert found == [beat(60, t=1), beat(60, t=1, worker="w2")]


def test_an_observer_hears_a_beat_with_its_last_part_and_misses_no_job_of_it() -> None:
    """Of a worker that dies, every job is given back, of whichever part."""
    observer = Observer("a")
    *first, last = split(beat(60), SMALL)
    for part in first:
        observer.on_beat(part, 0.0)
    assert observer.beats(0.0) == {}
    observer.on_beat(last, 0.0)
    assert observer.beats(0.0) == {"w1": beat(60)}
    observer.suspects(0.0, True)
    naks = [nak for tenth in range(1, 30) for nak in observer.suspects(tenth / 10, True)]
    assert {nak.gid for nak in naks} == set(beat(60).held)


def test_a_version_that_knows_no_parts_reads_each_as_a_beat() -> None:
    """`/v1` only grows: fields are added, none changes its meaning."""

    class Old(msgspec.Struct):
        worker: str
        held: dict[str, str]

    for part in split(beat(60), SMALL):
        assert msgspec.json.decode(encode(part), type=Old).held == part.held


def test_what_is_taken_since_is_added_to_the_last_whole_beat() -> None:
    """Of a worker that dies right after it, those jobs are given back with the others."""
    observer, told = Observer("a"), beat(3)
    observer.on_beat(told, 0.0)
    observer.on_beat(more(told, {"new": "reply"}), 0.2)
    assert observer.beats(0.2)["w1"].held == {**beat(3).held, "new": "reply"}
    assert observer.beats(0.2)["w1"].models == told.models
    for tenth in range(3, 12):
        assert observer.suspects(tenth / 10, True) == [], "it was heard at 0.2"
    naks = [nak for tenth in range(12, 30) for nak in observer.suspects(tenth / 10, True)]
    assert "new" in {nak.gid for nak in naks}


def test_more_of_what_was_not_heard_is_nothing() -> None:
    observer, told = Observer("a"), beat(3)
    observer.on_beat(more(told, {"new": "reply"}), 0.0)
    assert observer.beats(0.0) == {}
    observer.on_beat(told, 0.1)
    observer.on_beat(more(msgspec.structs.replace(told, instance="another"), {"new": "reply"}), 0.2)
    assert observer.beats(0.2) == {"w1": beat(3)}


def test_to_a_version_that_knows_only_parts_more_is_a_beat_whose_beginning_was_missed() -> None:
    assert Parts().take(more(beat(3), {"new": "reply"})) is None

"""The simulation of a fleet: it agrees with what can be worked out by hand, and with itself."""

from __future__ import annotations

import pytest

from bench.fleet import SPREAD, Fleet, _waits, simulate

SMALL = Fleet(machines=10, processes=4, partitions=320, sessions=200_000, attach=0.001, free=0.5)


def test_a_queue_that_is_full_at_once_takes_its_number_times_its_service() -> None:
    """1 000 at once, 4 servers, 2 ms each: the last one waits 0.5 s."""
    waits = _waits(SMALL, [[0.0] * 1000])
    assert waits.viewers == 1000
    assert waits.longest == pytest.approx(0.5)
    assert waits.p50 == pytest.approx(0.25, rel=0.02)


def test_who_comes_to_an_idle_machine_waits_only_for_itself() -> None:
    waits = _waits(SMALL, [[float(second) for second in range(50)]])
    assert waits.longest == pytest.approx(0.002)


def test_a_death_moves_its_own_and_is_shared_by_the_others() -> None:
    found = simulate(SMALL, storm=0.1, within=1.0)
    assert 1.0 <= found.balance <= 1.35, "bounded load: 1.25 times the mean of the partitions, and chance"
    assert found.moved == 0.0
    mean = SMALL.sessions / SMALL.machines
    assert mean <= found.death.viewers <= 1.4 * mean
    assert found.death.machines <= 9
    assert found.death.longest <= found.death.viewers * SMALL.attach / SMALL.free / SMALL.processes + SPREAD
    assert found.storm.longest > SMALL.attach


def test_the_same_seed_plays_the_same_run() -> None:
    assert simulate(SMALL, storm=0.1, within=1.0, seed=7) == simulate(SMALL, storm=0.1, within=1.0, seed=7)


@pytest.mark.parametrize(("machines", "partitions"), [(1, 32), (10, 9)])
def test_what_is_no_fleet_is_refused(machines: int, partitions: int) -> None:
    with pytest.raises(ValueError, match="at least two"):
        simulate(Fleet(machines, 4, partitions, 1000, 0.001, 0.5), storm=0.1, within=1.0)

"""When a server that answers is of no use."""

from __future__ import annotations

from broker.bus.futility import FIRST, LONGEST, Futility


def test_a_server_that_decides_is_kept() -> None:
    futility = Futility()
    for second in range(100):
        futility.in_vain(second)
        futility.decided()
        assert not futility.look(second + 1)


def test_others_are_tried_less_and_less_often() -> None:
    """A system without a quorum is not helped by everybody moving about."""
    futility = Futility()
    moved = []
    for tick in range(4000):
        now = tick / 10
        futility.in_vain(now)
        if futility.look(now):
            moved.append(now)
    waits = [later - earlier for earlier, later in zip([0.0, *moved], moved, strict=False)]
    assert waits[0] == FIRST
    assert waits[1] >= 2 * FIRST
    assert LONGEST <= waits[-1] <= LONGEST + 1

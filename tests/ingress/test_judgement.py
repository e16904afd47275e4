"""How a node is: judged by its silence and by what it says, and never all at once for a reason of our own."""

from __future__ import annotations

import pytest

from ingress.judgement import Health, cut_off, judge

AFTER = 0.5


def at(silence: float, *, ready: bool = True, refused: bool = False, others_up: bool = True) -> Health:
    return judge(silence, ready=ready, refused=refused, suspect_after=0.5, down_after=1.0, others_up=others_up)


def test_silence_is_suspect_and_then_down() -> None:
    assert at(0.1) is Health.UP
    assert at(0.1, ready=False) is Health.UNREADY
    assert at(0.6) is Health.SUSPECT
    assert at(1.1) is Health.DOWN


def test_when_nobody_else_is_up_silence_proves_nothing() -> None:
    assert at(60.0, others_up=False) is Health.SUSPECT


def test_a_refused_connection_is_down_at_once() -> None:
    assert at(0.0, refused=True, others_up=False) is Health.DOWN


def test_a_node_is_cut_off_once_another_was_well_for_long_enough_without_it() -> None:
    assert not cut_off(None, [(0.0, 100.0)], AFTER)
    assert not cut_off(10.0, [(0.0, 10.4)], AFTER)
    assert cut_off(10.0, [(0.0, 10.5)], AFTER)


def test_a_node_is_not_cut_off_when_nobody_else_hears() -> None:
    assert not cut_off(10.0, [], AFTER)
    assert not cut_off(10.0, [None, None], AFTER)


@pytest.mark.parametrize("later", [0.0, 0.1, 0.4])
def test_who_notices_first_that_nats_is_gone_is_not_cut_off(later: float) -> None:
    """The only server dies, and the nodes do not all say so at the same moment."""
    assert not cut_off(10.0, [(0.0, 10.0 + later)], AFTER)


def test_who_hears_again_last_is_not_cut_off() -> None:
    """The only server is back after a minute, and the nodes do not all find it at the same moment."""
    assert not cut_off(10.0, [(70.0, 70.0), (70.1, 70.4)], AFTER)
    assert cut_off(10.0, [(70.0, 70.6)], AFTER)


def test_a_cut_off_node_that_falls_silent_is_judged_by_its_silence() -> None:
    def alone(silence: float) -> Health:
        return judge(silence, ready=False, refused=False, suspect_after=0.5, down_after=1.0, others_up=True, alone=True)

    assert [alone(0.1), alone(0.6), alone(1.1)] == [Health.CUT_OFF, Health.SUSPECT, Health.DOWN]

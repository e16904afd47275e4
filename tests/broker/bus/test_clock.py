"""The one wall clock of a process: set off by what its role is told, and never running backwards in a record."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from broker.bus import clock


@pytest.fixture(autouse=True)
def right_again() -> Iterator[None]:
    yield
    clock.set_offset(0)


@pytest.mark.parametrize("offset", [0, 300.5, -240])
def test_the_time_is_the_machines_and_the_offset(offset: float) -> None:
    clock.set_offset(offset)
    before = time.time() + offset
    assert before - 0.001 <= clock.now() <= time.time() + offset + 0.001
    assert before - 0.001 <= clock.now_ms() / 1000 <= time.time() + offset + 0.001


def test_an_offset_replaces_the_one_before() -> None:
    clock.set_offset(3600)
    clock.set_offset(0)
    assert abs(clock.now() - time.time()) < 60


def test_a_time_that_follows_another_is_later_whoevers_clock_said_that_one() -> None:
    ahead = clock.now_ms() + 300_000
    assert clock.after_ms(ahead) == ahead + 1
    assert clock.after_ms(0) >= clock.now_ms() - 1000

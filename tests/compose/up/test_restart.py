"""When a dead role comes back."""

import pytest

from compose.up import restart


def test_the_first_death_is_forgiven_at_once() -> None:
    assert restart.delay(1) == 0.0


def test_who_is_replaced_by_others_gives_way_to_them() -> None:
    assert restart.delay(1, gives_way=True) == restart.GIVE_WAY
    assert all(restart.delay(deaths, gives_way=True) >= restart.delay(deaths) for deaths in range(1, 40))


def test_later_ones_wait_longer_each_time_and_never_longer_than_the_longest() -> None:
    delays = [restart.delay(deaths) for deaths in range(2, 40)]
    assert delays[0] == restart.FIRST_DELAY
    assert delays == sorted(delays)
    assert delays[-1] == restart.LONGEST_DELAY
    assert restart.delay(10**6) == restart.LONGEST_DELAY


def test_a_role_that_had_settled_starts_with_a_clean_sheet() -> None:
    assert restart.deaths_in_a_row(5, restart.SETTLED) == 1
    assert restart.deaths_in_a_row(5, restart.SETTLED - 0.1) == 6


def test_no_restart_without_a_death() -> None:
    with pytest.raises(ValueError, match="death"):
        restart.delay(0)

"""A run is the same for the same seed, plays everything first, and its rounds can be played again alone."""

from itertools import islice

from compose.chaos.scenarios import CATALOGUE
from compose.chaos.schedule import turns
from compose.chaos.world import SINGLE

SCENARIOS = [scenario for scenario in CATALOGUE.values() if scenario.world is SINGLE]


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (list(islice(turns(SCENARIOS, 7), 200)) for _ in range(2))
    assert first == second
    assert first != list(islice(turns(SCENARIOS, 8), 200))


def test_every_scenario_is_played_before_any_is_played_again() -> None:
    shares = [list(islice(turns(SCENARIOS, 7, share, 3), len(SCENARIOS[share::3]))) for share in range(3)]
    assert sorted(turn.scenario.name for share in shares for turn in share) == sorted(one.name for one in SCENARIOS)


def test_systems_that_share_a_world_never_play_the_same_round() -> None:
    played = [
        (turn.scenario.name, turn.number) for share in range(3) for turn in islice(turns(SCENARIOS, 7, share, 3), 300)
    ]
    assert len(set(played)) == len(played)

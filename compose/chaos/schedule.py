"""Which scenario is played when: pure, and the same for the same seed.

First every scenario once, in an order drawn by the seed, then by weight. A round's number is its own, so a round that
is played again alone draws what it drew in the long run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from compose.chaos.scenario import Scenario


class Turn(NamedTuple):
    scenario: Scenario
    number: int


def turns(scenarios: Sequence[Scenario], seed: int, share: int = 0, shares: int = 1) -> Iterator[Turn]:
    """Endless. `share` of `shares` systems of one world: each begins with its own part, and numbers never meet."""
    rng = random.Random(f"{seed}/turns/{share}")
    played: Counter[str] = Counter()

    def turn(scenario: Scenario) -> Turn:
        played[scenario.name] += 1
        return Turn(scenario, (played[scenario.name] - 1) * shares + share + 1)

    first = list(scenarios)[share::shares]
    rng.shuffle(first)
    for scenario in first:
        yield turn(scenario)
    weights = [scenario.weight for scenario in scenarios]
    while True:
        yield turn(rng.choices(list(scenarios), weights)[0])

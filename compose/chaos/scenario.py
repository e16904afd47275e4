"""A scenario: one way to hurt a system, what it may cost, and how it is played. Pure data; playing is `round.py`'s."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compose.chaos.world import SINGLE, World

if TYPE_CHECKING:
    from compose.chaos.round import Round

Play = Callable[["Round"], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """`bound`: p99 of the gap that a viewer sees, seconds; None where the failure table names none. `figures`: the same
    of what else it measures, by name.

    `takeovers`: another worker may take over; where not, one is a violation.
    `keeps_connections`: it hurts only what is behind the ingress, so that a viewer's connection lasts until the end,
    unless he is told to come again later. `links`: it hurts what passes between the system's own parts.
    `weight`: how often it is drawn, beside the others.
    """

    name: str
    sentence: str
    play: Play
    world: World = SINGLE
    bound: float | None = None
    takeovers: bool = False
    links: bool = False
    keeps_connections: bool = False
    weight: int = 4
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def needs_own(self) -> str:
        """Why it cannot be played on a system that runs already; empty where it can."""
        if self.world is SINGLE and not self.links:
            return ""
        return f"it needs a system of its own: {self.world.sentence}"


class Catalogue(dict[str, Scenario]):
    """All scenarios by name."""

    def scenario(
        self,
        sentence: str,
        *,
        world: World = SINGLE,
        bound: float | None = None,
        takeovers: bool = False,
        links: bool = False,
        keeps_connections: bool = False,
        weight: int = 4,
        figures: Mapping[str, float] | None = None,
    ) -> Callable[[Play], Play]:
        """The decorated coroutine function plays the scenario of its name, with dashes."""

        def add(play: Play) -> Play:
            name = getattr(play, "__name__", "").replace("_", "-")
            assert name not in self, name
            self[name] = Scenario(
                name, sentence, play, world, bound, takeovers, links, keeps_connections, weight, figures or {}
            )
            return play

        return add

    @property
    def bounds(self) -> dict[str, float]:
        """Of gaps, by scenario."""
        return {one.name: one.bound for one in self.values() if one.bound is not None}

    @property
    def figures(self) -> dict[str, float]:
        """Of whatever else is measured, by name."""
        return {name: bound for one in self.values() for name, bound in one.figures.items()}


CATALOGUE = Catalogue()
scenario = CATALOGUE.scenario

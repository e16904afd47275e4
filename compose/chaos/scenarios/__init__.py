"""The catalogue: every scenario, by the part that is hurt. Importing this fills `CATALOGUE`."""

from compose.chaos.scenario import CATALOGUE
from compose.chaos.scenarios import processes

__all__ = ["CATALOGUE", "processes"]

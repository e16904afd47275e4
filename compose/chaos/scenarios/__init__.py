"""The catalogue: every scenario, by the part that is hurt. Importing this fills `CATALOGUE`."""

from compose.chaos.scenario import CATALOGUE
from compose.chaos.scenarios import (
    clients,
    cluster,
    engines,
    jobs,
    machines,
    processes,
    recovery,
    streams,
)

__all__ = [
    "CATALOGUE",
    "clients",
    "cluster",
    "engines",
    "jobs",
    "machines",
    "processes",
    "recovery",
    "streams",
]

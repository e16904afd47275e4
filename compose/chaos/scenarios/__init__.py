"""The catalogue: every scenario, by the part that is hurt. Importing this fills `CATALOGUE`."""

from compose.chaos.scenario import CATALOGUE
from compose.chaos.scenarios import (
    backpressure,
    cancel,
    clients,
    cluster,
    engines,
    jobs,
    leaving,
    links,
    machines,
    processes,
    recovery,
    streams,
)

__all__ = [
    "CATALOGUE",
    "backpressure",
    "cancel",
    "clients",
    "cluster",
    "engines",
    "jobs",
    "leaving",
    "links",
    "machines",
    "processes",
    "recovery",
    "streams",
]

"""What all answers of one worker share on their way to the logs."""

from __future__ import annotations

from broker.bus.nats import Bus
from gpu_worker.cadence import Cadence
from gpu_worker.probes import Probes
from gpu_worker.reserve import Reserve
from gpu_worker.turns import Turns


class Publishing:
    """The connection, the room that is kept in each log, who tries again, whose turn it is, and how often."""

    __slots__ = ("bus", "cadence", "probes", "reserve", "turns")

    def __init__(self, bus: Bus, *, turns: Turns | None = None, cadence: Cadence | None = None) -> None:
        self.bus = bus
        self.reserve = Reserve(bus)
        self.probes = Probes()
        self.turns = turns or Turns()
        self.cadence = cadence or Cadence()

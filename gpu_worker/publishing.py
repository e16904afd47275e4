"""What all answers of one worker share on their way to the logs."""

from __future__ import annotations

from broker.bus.nats import Bus
from gpu_worker.batches import Batches
from gpu_worker.cadence import Cadence
from gpu_worker.probes import Probes
from gpu_worker.reserve import Reserve
from gpu_worker.turns import FEWEST, Turns


class Publishing:
    """The connection, the room that is kept in each log, who tries again, whose turn it is, and how often."""

    __slots__ = ("bus", "cadence", "probes", "reserve", "turns")

    def __init__(
        self, bus: Bus, *, window: int | None = None, batch_from: int = FEWEST, cadence: Cadence | None = None
    ) -> None:
        self.bus = bus
        self.reserve = Reserve(bus)
        self.probes = Probes()
        self.turns = Turns(window, Batches(bus, self.reserve), batch_from)
        self.cadence = cadence or Cadence()

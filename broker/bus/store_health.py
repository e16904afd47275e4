"""What a role tells of its stores: a reason not to be ready, a gauge for alerts, a line in the log when it changes."""

from __future__ import annotations

import structlog
from prometheus_client import Gauge

from broker.bus.health import STORE, Health
from broker.bus.storing import Storing

FAILING = Gauge("okome_store_failing", "1 while NATS acknowledges nothing of what this process stores somewhere")

log = structlog.get_logger("bus")


def tell(health: Health, storing: Storing, now: float) -> None:
    """Again and again; `now` is the loop's time."""
    why = storing.trouble(now)
    told = STORE in health.reasons
    health.set(STORE, why)
    FAILING.set(why is not None)
    if why is not None and not told:
        log.warning("store.stalled", why=why)
    elif why is None and told:
        log.info("store.stall_ended")

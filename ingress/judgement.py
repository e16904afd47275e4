"""How a stream node is, and what becomes of what it serves. Pure; time is an argument.

A node is judged by its silence: no answer to a check and not a byte on any other connection. A frozen process, a
half-open connection and a lost machine look the same and are noticed in `down_after` + one tick. A node is called down
for silence only while another one is up: when all are silent, the reason is here or everywhere, and moving streams
would help nobody. The same holds of a node that answers, and says that it does not hear NATS.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

Span = tuple[float, float]  # seconds on the caller's clock


class Health(StrEnum):
    UP = "up"
    UNREADY = "unready"  # answers, but not "ready": nothing new for it, what it serves stays
    CUT_OFF = "cut_off"  # answers, and does not hear NATS while another one does: the streams that it serves are moved
    SUSPECT = "suspect"  # silent for `suspect_after`: nothing new for it
    DOWN = "down"  # silent for `down_after` or refused: what it served is moved


def cut_off(deaf_since: float | None, others: Iterable[Span | None], after: float) -> bool:
    """Pure: whether a node that says since then that it does not hear NATS is the only one.

    Another one proves it that was well for `after` seconds of that time. So nobody is cut off when all are, though one
    notices later or hears again sooner than another.
    """
    if deaf_since is None:
        return False
    return any(well is not None and well[1] - max(well[0], deaf_since) >= after for well in others)


def judge(
    silence: float,
    *,
    ready: bool,
    refused: bool,
    suspect_after: float,
    down_after: float,
    others_up: bool,
    alone: bool = False,
) -> Health:
    """Pure: what `silence` seconds mean. `alone`: it is cut off from NATS, and another one is not."""
    if refused:
        return Health.DOWN
    if silence > down_after and others_up:
        return Health.DOWN
    if silence > suspect_after:
        return Health.SUSPECT
    if alone:
        return Health.CUT_OFF
    return Health.UP if ready else Health.UNREADY

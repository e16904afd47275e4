"""When a dead role comes back. Pure: time is an argument.

The first death is forgiven at once, because a viewer's gap is measured in milliseconds; only a part whose viewers are
taken over by others gives way to these first, because starting a Python takes most of a core from them for a second.
After that the pause doubles, so that a role which cannot live does not burn the machine. A role that stayed ready for
`SETTLED` seconds has earned a clean sheet.
"""

from __future__ import annotations

FIRST_DELAY = 0.25
GIVE_WAY = 0.5
LONGEST_DELAY = 10.0
SETTLED = 30.0


def delay(deaths: int, *, gives_way: bool = False) -> float:
    """Seconds to wait before the restart after the `deaths`-th death in a row: 0, 0.25, 0.5, 1 … 10, or more for one
    that gives way."""
    if deaths < 1:
        raise ValueError("a restart follows at least one death")
    least = GIVE_WAY if gives_way else 0.0
    if deaths == 1:
        return least
    return max(least, float(min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(deaths - 2, 16))))


def deaths_in_a_row(before: int, ready_for: float, settled: float = SETTLED) -> int:
    """How many deaths count, this one included, when the one that just ended had been ready for `ready_for` seconds."""
    return 1 if ready_for >= settled else before + 1

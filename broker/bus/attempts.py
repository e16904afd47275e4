"""Attempts at a generation: when they have been enough. Pure.

Workers count before they take one over, OKOME before it gives one up that nobody takes.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.bus.frames import ATTEMPT, REASONING, START, TOKEN, Frame

MAX_BARREN_EPOCHS = 3  # epochs in a row without one new token: nobody will do better


def barren_epochs(frames: Iterable[Frame]) -> int:
    """Epochs without a token at the end of a generation's frames."""
    barren = 0
    for frame in frames:
        if frame.type in (START, ATTEMPT):
            barren += 1
        elif frame.type in (TOKEN, REASONING):
            barren = 0
    return barren

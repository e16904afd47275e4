"""Viewers that leave: their connections break off, and they stay away until they are told to go on."""

from __future__ import annotations

from collections.abc import Sequence

from compose.chaos import gauges
from compose.chaos.fault import Fault, comes_true
from compose.chaos.subject import Running
from compose.chaos.system import System
from compose.chaos.viewer import Viewer

SIGN_TIMEOUT = 5.0


def leave(system: System | Running, viewers: Sequence[Viewer], *, wrong: bool) -> Fault:
    """Everybody who watches leaves before the end, so that the proof is that nobody watches. `wrong`: nobody leaves."""

    async def strike() -> None:
        if not wrong:
            for viewer in viewers:
                viewer.hold()
                viewer.kick()

    async def nobody() -> str | None:
        if any(viewer.ended for viewer in viewers):
            return None  # they have seen all of it, and are gone because of that
        found = await gauges.read(system)
        watching = gauges.total(found, "okome_node_subscribers") + gauges.total(found, "okome_ingress_streams_active")
        return f"{len(viewers)} viewers left; no node and no ingress has a stream" if not watching else None

    async def undo() -> None:
        for viewer in viewers:
            viewer.go_on()

    return Fault(
        f"{len(viewers)} viewers", strike, lambda: comes_true(nobody, "a system without viewers", SIGN_TIMEOUT), undo
    )

"""Viewers that leave: their connections break off, and they stay away until they are told to go on."""

from __future__ import annotations

from collections.abc import Sequence

from compose.chaos import gauges
from compose.chaos.fault import DidNotHappen, Fault, comes_true
from compose.chaos.subject import Running
from compose.chaos.system import System
from compose.chaos.viewer import Viewer

SIGN_TIMEOUT = 20.0
WRONG_TIMEOUT = 5.0
"""The same in a control run, where nobody leaves."""


def leave(system: System | Running, viewers: Sequence[Viewer], *, wrong: bool) -> Fault:
    """Everybody who watches leaves before the end, so that the proof is that nobody watches. `wrong`: nobody leaves.

    Whose answer has ended by then is gone already; somebody's must not have.
    """
    leaving: list[Viewer] = []

    async def strike() -> None:
        leaving.extend(viewer for viewer in viewers if not viewer.ended)
        if not leaving:
            raise DidNotHappen("every viewer has seen the end, and is gone because of that")
        if not wrong:
            for viewer in leaving:
                viewer.hold()
                viewer.kick()

    async def nobody() -> str | None:
        if any(viewer.ended for viewer in leaving):
            return None  # they have seen all of it, and are gone because of that
        found = await gauges.read(system)
        if not all(
            gauges.told(found.get(one.id, {})) for role in ("node", "ingress") for one in system.processes(role)
        ):
            return None  # who does not answer may have a stream
        watching = gauges.total(found, "okome_node_subscribers") + gauges.total(found, "okome_ingress_streams_active")
        return f"{len(leaving)} viewers left; no node and no ingress has a stream" if not watching else None

    async def undo() -> None:
        for viewer in viewers:
            viewer.go_on()

    timeout = WRONG_TIMEOUT if wrong else SIGN_TIMEOUT
    return Fault(
        f"{len(viewers)} viewers", strike, lambda: comes_true(nobody, "a system without viewers", timeout), undo
    )

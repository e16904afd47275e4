"""Runs a set of parts: started stage by stage, kept alive, stopped in order with one deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from compose.up import restart
from compose.up.keeper import Keeper, State
from compose.up.part import STOP_ORDER, Part
from compose.up.probe import Probe

LEAST = 1.0
"""Seconds that every role has for its end, however long those before it took: else one that does not end would have all
that stand below it killed, NATS among them."""


class Supervisor:
    """`stages` start one after the other, the parts of a stage together. `async with`: leaving it stops everything.

    `on_change(keeper)` is called from the event loop after every move of a part.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[Part]],
        *,
        logs: Path,
        probe: Probe,
        on_change: Callable[[Keeper], None],
        restarting: bool = True,
        start_timeout: float = 60.0,
        stop_timeout: float = 25.0,
        settled: float = restart.SETTLED,
    ) -> None:
        self.hurry = asyncio.Event()
        """Set: whatever is being waited for while stopping is killed instead."""
        self._stop_timeout = stop_timeout
        self._stages = [
            [
                Keeper(
                    part,
                    logs=logs,
                    probe=probe,
                    on_change=on_change,
                    start_timeout=start_timeout,
                    restarting=restarting,
                    settled=settled,
                )
                for part in stage
            ]
            for stage in stages
        ]
        self._keeping: set[asyncio.Task[None]] = set()
        self.killed: list[str] = []
        """Ids of the parts that did not end by themselves when they were stopped."""

    @property
    def keepers(self) -> list[Keeper]:
        return [keeper for stage in self._stages for keeper in stage]

    async def __aenter__(self) -> Supervisor:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when every part is ready. Raises StartFailed of the first part that is not going to be."""
        for stage in self._stages:
            starting = {asyncio.create_task(self._start(keeper)) for keeper in stage}
            try:
                done, _ = await asyncio.wait(starting, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
            finally:
                for task in starting:
                    task.cancel()
                await asyncio.gather(*starting, return_exceptions=True)

    async def _start(self, keeper: Keeper) -> None:
        await keeper.start()
        task = asyncio.create_task(keeper.keep())
        self._keeping.add(task)
        task.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._keeping.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a part is no longer kept", "exception": error, "task": task}
            )

    async def stop(self) -> None:
        """Stop in the order of `STOP_ORDER` within `stop_timeout` seconds altogether. Idempotent."""
        deadline = asyncio.get_running_loop().time() + self._stop_timeout
        left = [one for one in self.keepers if one.state is not State.STOPPED]
        roles = [role for role in STOP_ORDER if any(one.part.role == role for one in left)]
        least = min(LEAST, self._stop_timeout / max(1, len(roles)))
        for later, role in zip(reversed(range(len(roles))), roles, strict=True):
            going = [one for one in left if one.part.role == role]
            ended = await asyncio.gather(*(one.stop(deadline - later * least, self.hurry) for one in going))
            self.killed += [one.part.id for one, by_itself in zip(going, ended, strict=True) if not by_itself]
        # Keepers end when their parts are stopped; one that is in the middle of a start is not waited for.
        for task in list(self._keeping):
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)

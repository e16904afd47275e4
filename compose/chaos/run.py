"""A run: one system, round after round, until enough faults have struck or the time is over. A process of its own.

Told what to do by one line of JSON on stdin, it writes its records to a file and, as they come, to stdout. When stdin
is closed it breaks its round off and ends: whoever started it has had enough, or is gone. SIGTERM ends it and its
system, wherever it is.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from broker.bus.lifecycle import configure_logging, loop_factory, raise_file_limit
from broker.bus.version import VERSION
from compose.chaos import record
from compose.chaos.deaths import Deaths
from compose.chaos.disk import NoDisk
from compose.chaos.household import Household
from compose.chaos.record import Ended, Run, Violation
from compose.chaos.round import Round
from compose.chaos.scenarios import CATALOGUE
from compose.chaos.schedule import Turn, turns
from compose.chaos.subject import Running
from compose.chaos.system import System
from compose.chaos.whole import NotBack, Process
from compose.chaos.world import SINGLE, World


class Order(msgspec.Struct, frozen=True):
    """What one run is to do.

    `faults`: it ends when so many have struck and every scenario was played; 0: it ends with `duration`. `number` > 0:
    that round of one scenario only. `running`: the ready file of a system that runs already; "": one of its own.
    """

    id: str
    seed: int
    scenarios: tuple[str, ...]
    faults: int
    sessions: int
    duration: float
    number: int
    control: bool
    file: str
    share: int = 0
    shares: int = 1
    running: str = ""


class Player:
    """Plays one order. `say` gets every record as it comes."""

    def __init__(self, order: Order, say: Callable[[record.Line], None], enough: asyncio.Event) -> None:
        self._order = order
        self._say = say
        self._enough = enough
        self._scenarios = [CATALOGUE[name] for name in order.scenarios]
        self._left_out: dict[str, str] = {}
        if order.running:
            self._left_out = {one.name: one.needs_own for one in self._scenarios if one.needs_own}
            self._scenarios = [scenario for scenario in self._scenarios if scenario.name not in self._left_out]
        self._unplayed = [one.name for one in self._scenarios[order.share :: order.shares]]
        """What is to be played once at least, and was not yet."""
        self._deaths = Deaths(())
        self._rounds = self._injections = self._unverified = self._violations = 0
        self._loop = asyncio.get_running_loop()
        self._zero = self._loop.time()

    async def play(self) -> None:
        """Raises StartFailed, NoSystem or NotBack where there is no system to be hurt."""
        order = self._order
        world = self._scenarios[0].world if self._scenarios else SINGLE
        self._say(
            Run(
                id=order.id,
                seed=order.seed,
                target=order.running or world.name,
                command=replay(order, order.scenarios, 0),
                began=datetime.now(UTC).isoformat(timespec="seconds"),
                machine=machine(),
                version=VERSION,
                control=order.control,
            )
        )
        with tempfile.TemporaryDirectory(prefix="okome-chaos-", ignore_cleanup_errors=True) as directory:
            try:
                async with self._target(world, Path(directory)) as system:
                    self._deaths = Deaths(system.processes())
                    await self._rounds_of(system)
            except NoDisk as error:
                self._left_out.update((scenario.name, str(error)) for scenario in self._scenarios)
        self._say(
            Ended(
                run=order.id,
                at=self._loop.time() - self._zero,
                interrupted=self._enough.is_set(),
                left_out=self._left_out,
                unplayed=() if self._enough.is_set() else self._to_be_played(),
                rounds=self._rounds,
                injections=self._injections,
                unverified=self._unverified,
                violations=self._violations,
            )
        )

    def _to_be_played(self) -> tuple[str, ...]:
        return tuple(name for name in self._unplayed if name not in self._left_out)

    def _target(self, world: World, directory: Path) -> System | Running:
        """The system that is hurt, not yet started."""
        if self._order.running:
            return Running(world, Path(self._order.running))
        return Household(world, directory) if world.apart else System(world, directory)

    async def _rounds_of(self, system: System | Running) -> None:
        began = self._loop.time()
        for turn in self._turns():
            if self._enough.is_set() or (self._order.duration and self._loop.time() - began > self._order.duration):
                self._unplayed.clear()  # there was no time for them
                return
            if not await self._round(system, turn):
                return

    def _turns(self) -> Iterator[Turn]:
        order = self._order
        if not self._scenarios:
            return
        if order.number:
            yield Turn(self._scenarios[0], order.number)
            return
        own = len(self._scenarios[order.share :: order.shares])
        for played, turn in enumerate(turns(self._scenarios, order.seed, order.share, order.shares)):
            if played >= own and order.faults and self._injections >= order.faults:
                return
            yield turn

    async def _round(self, system: System | Running, turn: Turn) -> bool:
        """Play one and tell of it; False where it was broken off, or nothing is left to be hurt."""
        order = self._order
        round = Round(
            system,
            turn.scenario,
            turn.number,
            run=order.id,
            seed=order.seed,
            sessions=order.sessions,
            began=self._zero,
            replay=replay(order, [turn.scenario.name], turn.number),
            control=order.control,
        )
        playing = asyncio.create_task(round.play(), name=f"round-{turn.scenario.name}")
        enough = asyncio.create_task(self._enough.wait(), name="enough")
        try:
            await asyncio.wait([playing, enough], return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():
                return False
            verdict = playing.result()
        finally:
            enough.cancel()
            playing.cancel()
            await asyncio.gather(enough, playing, return_exceptions=True)
        # Everything was given back by now: what is not whole did not come back.
        amiss = await self._not_back(system) or self._fell(system, verdict.ended)
        record = msgspec.structs.replace(verdict.record, violations=(*verdict.record.violations, *amiss))
        for injection in verdict.injections:
            self._injections += 1
            self._unverified += not injection.verified
            self._say(injection)
        self._rounds += 1
        self._violations += len(record.violations)
        self._say(record)
        if turn.scenario.name in self._unplayed:
            self._unplayed.remove(turn.scenario.name)
        return not any(one.rule == "stuck" for one in amiss)

    async def _not_back(self, system: System | Running) -> list[Violation]:
        try:
            await system.whole()
        except NotBack as error:
            return [Violation("stuck", "", f"when the faults were undone: {error}")]
        return []

    def _fell(self, system: System | Running, ended: Sequence[Process]) -> list[Violation]:
        said = "{0.id} ended by itself: {1}; restarts by now: {0.restarts}"
        fell = self._deaths.by_themselves(system.processes(), ended)
        return [Violation("fell", "", said.format(one, system.last_end(one.id))) for one in fell]


def replay(order: Order, scenarios: Sequence[str], number: int) -> str:
    """The command that plays this again."""
    words = ["okome", "chaos", "--seed", str(order.seed), "--sessions", str(order.sessions)]
    for name in scenarios:
        words += ["--scenario", name]
    words += ["--round", str(number)] if number else ["--faults", str(order.faults)]
    words += ["--target", order.running] if order.running else []
    return shlex.join([*words, *(["--control"] if order.control else [])])


def machine() -> str:
    """What this runs on, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"


async def _main() -> None:
    loop = asyncio.get_running_loop()
    playing = asyncio.current_task()
    assert playing is not None
    loop.add_signal_handler(signal.SIGTERM, playing.cancel)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    order = msgspec.json.decode(await reader.readline(), type=Order)
    enough = asyncio.Event()

    async def listen() -> None:
        await reader.read()  # to its end: nothing more is ever said
        enough.set()

    listening = asyncio.create_task(listen(), name="listening")
    try:
        with open(order.file, "wb") as out:  # noqa: ASYNC230  # its own file, once

            def say(line: record.Line) -> None:
                record.write(out, line)
                record.write(sys.stdout.buffer, line)

            await Player(order, say, enough).play()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


def main() -> int:
    configure_logging("error")
    raise_file_limit()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_main())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A run: one system, round after round, until enough faults have struck or the time is over. A process of its own.

Told what to do by one line of JSON on stdin, it writes its records to a file and, as they come, to stdout. It ends at
the end of the round when stdin is closed: whoever started it has had enough, or is gone.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec

from broker.bus.lifecycle import configure_logging, loop_factory, raise_file_limit
from broker.bus.version import VERSION
from compose.chaos import record
from compose.chaos.record import Ended, Run
from compose.chaos.round import Round
from compose.chaos.scenario import Scenario
from compose.chaos.scenarios import CATALOGUE
from compose.chaos.schedule import Turn, turns
from compose.chaos.household import Household
from compose.chaos.system import System
from compose.chaos.whole import NotBack
from compose.chaos.world import World


class Order(msgspec.Struct, frozen=True):
    """What one run is to do. `faults` 0: no bound but `duration`; `number` > 0: that round of one scenario only."""

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


class Count:
    """What came of it so far."""

    def __init__(self) -> None:
        self.rounds = self.injections = self.unverified = self.violations = 0


async def run(order: Order, out: IO[bytes], enough: asyncio.Event) -> None:
    """Start the system, play, end it. Raises StartFailed where it does not start."""
    scenarios = [CATALOGUE[name] for name in order.scenarios]
    world = scenarios[0].world
    loop = asyncio.get_running_loop()
    zero = loop.time()

    def say(line: record.Line) -> None:
        record.write(out, line)
        record.write(sys.stdout.buffer, line)

    say(
        Run(
            id=order.id,
            seed=order.seed,
            target=world.name,
            command=replay(order, scenarios, 0),
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=f"{platform.system()} {platform.machine()}, {_cores()} cores, Python {platform.python_version()}",
            version=VERSION,
            control=order.control,
        )
    )
    count = Count()
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="okome-chaos-", ignore_cleanup_errors=True) as directory:
        async with target(world, Path(directory)) as system:
            began = loop.time()
            for turn in _turns(order, scenarios):
                if enough.is_set() or (order.duration and loop.time() - began > order.duration):
                    break
                verdict = await Round(
                    system,
                    turn.scenario,
                    turn.number,
                    run=order.id,
                    seed=order.seed,
                    sessions=order.sessions,
                    began=zero,
                    replay=replay(order, [turn.scenario], turn.number),
                    control=order.control,
                ).play()
                for injection in verdict.injections:
                    count.injections += 1
                    count.unverified += not injection.verified
                    say(injection)
                count.rounds += 1
                count.violations += len(verdict.record.violations)
                say(verdict.record)
                if order.faults and count.injections >= order.faults:
                    break
                try:
                    await system.whole()
                except NotBack:
                    break  # said by the round already: there is nothing left to hurt
    say(
        Ended(
            run=order.id,
            at=loop.time() - zero,
            interrupted=enough.is_set(),
            left_out=left_out,
            rounds=count.rounds,
            injections=count.injections,
            unverified=count.unverified,
            violations=count.violations,
        )
    )


def target(world: World, directory: Path) -> System | Household:
    """The system that a world's scenarios are played on, not yet started."""
    return Household(world, directory) if world.apart else System(world, directory)


def _turns(order: Order, scenarios: list[Scenario]) -> Iterable[Turn]:
    if order.number:
        return [Turn(scenarios[0], order.number)]
    return turns(scenarios, order.seed, order.share, order.shares)


def replay(order: Order, scenarios: list[Scenario], number: int) -> str:
    """The command that plays this again."""
    words = ["okome", "chaos", "--seed", str(order.seed), "--sessions", str(order.sessions)]
    for scenario in scenarios:
        words += ["--scenario", scenario.name]
    words += ["--round", str(number)] if number else ["--faults", str(order.faults)]
    return shlex.join([*words, *(["--control"] if order.control else [])])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


async def _main() -> None:
    loop = asyncio.get_running_loop()
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
            await run(order, out, enough)
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

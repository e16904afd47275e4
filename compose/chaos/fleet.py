"""Several runs at once, each a process with a system of its own; their records as they come, joined at the end.

Scenarios are dealt to systems by the world they need. A run ends at the end of its round when it is told that it has
been enough, and when whoever started it is gone. One that does not is asked to, and then made to.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from compose.chaos import record
from compose.chaos.run import Order
from compose.chaos.scenario import Scenario

RUN = (sys.executable, "-P", "-m", "compose.chaos.run")
END_TIMEOUT = 120.0
"""Seconds in which a run must have ended after it was told: a round, and the end of its system."""
ASKED_TIMEOUT = 45.0
"""The same, after it was asked by SIGTERM: its system is ended then, and nothing else is."""
LINE_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True)
class Plan:
    """What was asked for. `faults` are of all runs together; `number` > 0 plays one round of one scenario."""

    seed: int
    scenarios: Sequence[Scenario]
    faults: int
    sessions: int
    duration: float
    targets: int
    running: tuple[str, ...] = ()
    """Ready files of systems that run already; empty: systems of our own."""
    number: int = 0
    control: bool = False


def deal(plan: Plan, directory: Path) -> list[Order]:
    """The runs to be made, those that take longest first; `targets` of them go on at a time."""
    if plan.running:
        return [
            _order(plan, directory, f"target-{number}", plan.scenarios, plan.faults, number, len(plan.running), ready)
            for number, ready in enumerate(plan.running)
        ]
    worlds: dict[str, list[Scenario]] = {}
    for scenario in plan.scenarios:
        worlds.setdefault(scenario.world.name, []).append(scenario)
    total = sum(scenario.weight for scenario in plan.scenarios)
    orders: list[Order] = []
    for name, scenarios in worlds.items():
        weight = sum(scenario.weight for scenario in scenarios)
        # A world is played by several systems where it has more than its share of the faults.
        shares = 1 if plan.number else max(1, min(len(scenarios), round(plan.targets * weight / total)))
        faults = max(len(scenarios), round(plan.faults * weight / total)) if plan.faults else 0
        orders += [_order(plan, directory, name, scenarios, faults, share, shares) for share in range(shares)]
    return sorted(orders, key=lambda order: -order.faults)


def _order(
    plan: Plan,
    directory: Path,
    name: str,
    scenarios: Sequence[Scenario],
    faults: int,
    share: int,
    shares: int,
    running: str = "",
) -> Order:
    id = f"{name}-{share + 1}-{secrets.token_hex(4)}"
    return Order(
        id=id,
        seed=plan.seed,
        scenarios=tuple(scenario.name for scenario in scenarios),
        faults=-(-faults // shares),
        sessions=plan.sessions,
        duration=plan.duration,
        number=plan.number,
        control=plan.control,
        file=str(directory / f"{id}.jsonl"),
        share=share,
        shares=shares,
        running=running,
    )


class RunFailed(Exception):
    """A run ended without having said so; the message has its last words."""


async def play(
    orders: Sequence[Order], at_once: int, heard: Callable[[Order, record.Line], None], enough: asyncio.Event
) -> None:
    """Play all of them; `heard` gets every record as it comes. Raises RunFailed when all have ended."""
    waiting = list(orders)
    failed: list[str] = []

    async def one_after_the_other() -> None:
        while waiting and not enough.is_set():
            order = waiting.pop(0)
            try:
                await _play(order, heard, enough)
            except RunFailed as error:
                failed.append(str(error))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(at_once, len(orders))):
            tasks.create_task(one_after_the_other())
    if failed:
        raise RunFailed("\n".join(failed))


async def _play(order: Order, heard: Callable[[Order, record.Line], None], enough: asyncio.Event) -> None:
    process = await asyncio.create_subprocess_exec(
        *RUN,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_LIMIT,
        start_new_session=True,  # Ctrl-C is ours to take
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    ended = False
    words: list[str] = []

    async def tell_enough() -> None:
        await enough.wait()
        await _end(process)

    async def keep_words(stderr: asyncio.StreamReader) -> None:
        async for line in stderr:
            words.append(line.decode(errors="replace").rstrip())
            del words[:-12]

    telling = asyncio.create_task(tell_enough(), name="enough")
    keeping = asyncio.create_task(keep_words(process.stderr), name="last-words")
    try:
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        async for line in process.stdout:
            said = record.decode(line)
            heard(order, said)
            ended = isinstance(said, record.Ended)
        await process.wait()
        await keeping
    finally:
        telling.cancel()
        await _end(process)
        keeping.cancel()
        await asyncio.gather(telling, keeping, return_exceptions=True)
    if not ended or process.returncode:
        raise RunFailed(f"{order.id} ended with {process.returncode}: " + "\n".join(words))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Say that it has been enough, and wait for its end; one that takes too long is asked for it, and then killed."""
    assert process.stdin is not None
    process.stdin.close()
    for insist, timeout in ((process.terminate, END_TIMEOUT), (process.kill, ASKED_TIMEOUT)):
        try:
            async with asyncio.timeout(timeout):
                await process.wait()
            return
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                insist()
    await process.wait()

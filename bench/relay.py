"""What a token costs on its way through each contender: the same engine, the same load, interleaved runs."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench.child import child
from bench.contender import ROOT, Contender, NotStarted, mock_engine
from bench.lag import late, looks
from bench.load import Order
from bench.record import Failed, Loaded, Missing, Run, Shape, write
from bench.usage import between, busy, cores, used
from compose.chaos.run import machine

RUN_TIMEOUT = 300.0
"""Seconds that a run may take longer than was ordered, from the first connection to the last word."""
GIT_TIMEOUT = 30.0
ENGINE = "engine"
WHOLE = "the run"  # this process, and whatever it has started


class Timing(msgspec.Struct, frozen=True):
    """Seconds: over which the answers begin, that all of them then run unmeasured, and measured."""

    ramp: float = 3.0
    warm: float = 3.0
    window: float = 15.0

    def within(self, windows: int = 1) -> float:
        """Seconds in which a run of so many windows is over."""
        return RUN_TIMEOUT + self.ramp + self.warm + windows * self.window


async def measure(
    contenders: Sequence[Contender],
    shapes: Sequence[Shape],
    rounds: int,
    timing: Timing,
    file: Path,
    said: Callable[[str], None],
) -> None:
    """Every shape so many rounds, in each round every contender once, in turned order; records go to `file`.

    Who does not carry a load is recorded with the reason, and not asked for that load again.
    """
    here = present(contenders, file, said)
    for shape in shapes:
        able = list(here)
        for number in range(rounds):
            if not able:
                break
            for one in turned(able, number):
                try:
                    run = await once(one, shape, number, timing)
                except (NotStarted, TimeoutError) as error:
                    why = str(error) or f"not done in {timing.within():g} s"
                    write(file, Failed(one.name, one.version, shape, number, why))
                    said(f"{shape.name:<14} {one.name:<14} does not carry it: {why}")
                    able.remove(one)
                else:
                    write(file, run)
                    said(line(run))


def present(contenders: Sequence[Contender], file: Path, said: Callable[[str], None]) -> list[Contender]:
    """Those that can be measured here; the others are recorded, and the command that brings them."""
    here = []
    for one in contenders:
        if one.missing:
            write(file, Missing(one.name, one.missing))
            said(f"{one.name} is not here: {one.missing}")
        else:
            here.append(one)
    return here


def turned(contenders: list[Contender], number: int) -> list[Contender]:
    """The order of a round: in each another one is the first."""
    turn = number % max(1, len(contenders))
    return contenders[turn:] + contenders[:turn]


async def once(contender: Contender, shape: Shape, number: int, timing: Timing) -> Run:
    """One run, everything started for it and ended with it. Raises NotStarted, TimeoutError."""
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="okome-bench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        async with (
            mock_engine(directory) as (engine, pid),
            contender.start(engine, directory) as running,
            asyncio.timeout(timing.within()),
        ):
            order = Order(running.dialect, running.url, running.key, shape, timing.ramp, timing.warm, timing.window)
            processes = {ENGINE: pid, **running.processes, WHOLE: os.getpid()}
            async with child("bench.load", order) as load:
                assert load.stdout is not None
                assert load.stderr is not None
                if await load.stdout.readline() != b"begin\n":
                    raise NotStarted(f"{contender.name}: {last_line(await load.stderr.read())}")
                try:
                    # These first at both ends, as close to the load's window as can be.
                    before, busy_before, began_at = used(processes), busy(), time.monotonic()
                    looked = await looks(running.metrics)
                    await load.stdout.readline()
                    after, busy_after, ended_at = used(processes), busy(), time.monotonic()
                    lag = late(looked, await looks(running.metrics))
                except (OSError, EOFError) as error:
                    raise NotStarted(f"{contender.name}: in the measured window: {error}") from error
                assert load.stdin is not None
                load.stdin.close()
                if not (told := await load.stdout.readline()):
                    raise NotStarted(f"{contender.name}: {last_line(await load.stderr.read())}")
                seen = msgspec.json.decode(told, type=Loaded)
                await load.wait()
            held = between(before, after)
            theirs = busy_after - busy_before - held.pop(WHOLE).cpu
    return Run(
        contender.name,
        contender.version,
        shape,
        number,
        began,
        machine(),
        loaded=seen,
        processes=held,
        lag=lag,
        commit=commit(),
        others=max(0.0, theirs / (ended_at - began_at) / len(cores())),
    )


@functools.cache
def commit() -> str:
    """Of the working tree, with a `+` where it is another; "" where git or its history is not there."""
    try:
        asked = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=GIT_TIMEOUT).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def last_line(words: bytes) -> str:
    """Of what a process said, where an error stands."""
    return words.decode(errors="replace").strip().rpartition("\n")[2] or "it said nothing"


def line(run: Run) -> str:
    """For the screen, while it runs."""
    loaded = run.loaded
    costs = "  ".join(
        f"{name} {1e6 * held.cpu / max(1, loaded.tokens):.1f}"
        for name, held in run.processes.items()
        if held.cpu > 0.05
    )
    wrong = f"  WRONG {loaded.wrong}" if loaded.wrong else ""
    lost = f"  LOST {loaded.lost}" if loaded.lost else ""
    return (
        f"{run.shape.name:<14} {run.contender:<14} {loaded.tokens / loaded.seconds:>7.0f} tok/s"
        f"  p50 {loaded.latency.p50:.2f} p99 {loaded.latency.p99:.2f} ms"
        f"  ttft {loaded.ttft.p50:.1f}/{loaded.ttft.p99:.1f}"
        f"  client {100 * loaded.cpu / loaded.seconds:.0f} %  µs/token: {costs}{wrong}{lost}"
    )

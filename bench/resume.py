"""What coming back costs: whoever comes back, and everybody else meanwhile. One system, the mock engine behind it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench.child import child
from bench.contender import NotStarted, mock_engine
from bench.load import WINDOWS, Order
from bench.ours import Okome
from bench.record import Held, Resumed, Shape, write
from bench.relay import Timing, last_line
from bench.resume_load import HISTORY_RATE, ResumeOrder, Seen
from bench.usage import between, used
from compose.chaos.run import machine


async def measure(
    okome: Okome,
    shape: Shape,
    resumes: float,
    history: int,
    rounds: int,
    timing: Timing,
    file: Path,
    said: Callable[[str], None],
) -> None:
    """Every round in a system of its own; records go to `file`. Raises NotStarted, TimeoutError."""
    for number in range(rounds):
        found = await once(okome, shape, resumes, history, number, timing)
        write(file, found)
        said(
            f"{okome.name} {shape.name} {resumes:g} resumes/s: p50 {found.ring.p50:.1f} p99 {found.ring.p99:.1f} ms"
            f"  {history} tokens in {found.events} events: {', '.join(f'{one:.2f}' for one in found.seconds)} s"
            f"  others' p99 {found.quiet.p99:.1f} / {found.resuming.p99:.1f} / {found.replaying.p99:.1f} ms"
        )


async def once(okome: Okome, shape: Shape, resumes: float, history: int, number: int, timing: Timing) -> Resumed:
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="okome-bench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        async with (
            mock_engine(directory) as (engine, _),
            okome.start(engine, directory) as running,
            asyncio.timeout(timing.within(WINDOWS) + history / HISTORY_RATE),
        ):
            order = Order(running.dialect, running.url, running.key, shape, timing.ramp, timing.warm, timing.window)
            async with child("bench.resume_load", ResumeOrder(order, resumes, history)) as load:
                quiet, resuming, _ = [await _window(load, running.processes) for _ in range(WINDOWS)]
                assert load.stdout is not None
                told = await load.stdout.read()
                await load.wait()
    seen = msgspec.json.decode(told.splitlines()[-1], type=Seen)
    last = seen.replaying
    return Resumed(
        contender=okome.name,
        shape=shape,
        round=number,
        began=began,
        machine=machine(),
        ring=seen.ring,
        history=history,
        events=seen.events,
        attach={
            name: 1e6 * (resuming[name].cpu - quiet[name].cpu) / max(1, seen.ring.count) for name in running.processes
        },
        seconds=seen.seconds,
        quiet=seen.quiet.latency,
        resuming=seen.resuming.latency,
        replaying=last.latency,
        wrong=last.wrong,
        lost=last.lost,
    )


async def _window(load: asyncio.subprocess.Process, processes: Mapping[str, int]) -> dict[str, Held]:
    """What was used in the load's next window. Raises NotStarted where it or a process has ended."""
    assert load.stdout is not None
    assert load.stderr is not None
    readings = []
    for word in (b"begin\n", b"end\n"):
        if await load.stdout.readline() != word:
            raise NotStarted(f"resume: {last_line(await load.stderr.read())}")
        try:
            readings.append(used(processes))
        except ProcessLookupError as error:
            raise NotStarted(f"resume: {error}") from error
    return between(*readings)

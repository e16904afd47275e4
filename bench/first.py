"""How long a first token takes through each contender on a machine that does nothing else."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench.child import child
from bench.contender import Contender, NotStarted, mock_engine
from bench.first_load import RATE, FirstOrder
from bench.histogram import Times
from bench.load import Order
from bench.record import First, Shape, write
from bench.relay import RUN_TIMEOUT, last_line, present, turned
from compose.chaos.run import machine

ASK_TIMEOUT = 1.0  # of an answer in the middle of all of them: a first token, and the pause behind it


async def measure(
    contenders: Sequence[Contender], asks: int, rounds: int, file: Path, said: Callable[[str], None]
) -> None:
    """In each round every contender once, in turned order; records go to `file`. Raises NotStarted, TimeoutError."""
    here = present(contenders, file, said)
    for number in range(rounds):
        for one in turned(here, number):
            found = await once(one, asks, number)
            write(file, found)
            said(f"{one.name:<28} first token p50 {found.times.p50:.2f} p99 {found.times.p99:.2f} ms")


async def once(contender: Contender, asks: int, number: int) -> First:
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="okome-bench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        async with (
            mock_engine(directory) as (engine, _),
            contender.start(engine, directory) as running,
            asyncio.timeout(RUN_TIMEOUT + asks * ASK_TIMEOUT),
        ):
            order = Order(running.dialect, running.url, running.key, Shape(1, RATE), ramp=0.0, warm=0.0, window=0.0)
            async with child("bench.first_load", FirstOrder(order, asks)) as load:
                told, words = await load.communicate()
                if load.returncode:
                    raise NotStarted(f"{contender.name}: {last_line(words)}")
    times = msgspec.json.decode(told, type=Times)
    return First(contender.name, contender.version, number, began, machine(), times)

"""Recorded answers, and an engine that plays them over and over."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import cli, record, relay
from bench.mock_engine import Beat
from bench.peers import Direct
from bench.record import Run, Shape
from bench.trace import PAUSE, Token, Trace, recorded

TIMING = relay.Timing(ramp=0.2, warm=0.2, window=3.0)


def test_a_trace_steps_as_its_streams_did() -> None:
    trace = Trace("t", [[Token(1.0, "a"), Token(1.5, "b")], [Token(1.0, "c"), Token(2.0, "d")]])
    assert trace.steps == [(0.0, [0, 1]), (0.5, [0]), (1.0, [1])]
    assert trace.period == 1.0 + PAUSE
    assert trace.rate == pytest.approx(2 / trace.period)


@pytest.mark.parametrize("trace", recorded(), ids=lambda trace: trace.name)
def test_every_recorded_token_is_in_a_step(trace: Trace) -> None:
    assert sum(len(streams) for _, streams in trace.steps) == sum(map(len, trace.streams))
    assert [at for at, _ in trace.steps] == sorted(at for at, _ in trace.steps)


def test_a_shape_may_name_a_trace() -> None:
    shape = cli.shape("8xvllm_8_streams")
    assert (shape.streams, shape.trace, shape.name) == (8, "vllm_8_streams", "8 × vllm_8_streams")
    assert 5 < shape.rate < 30
    with pytest.raises(cli.WrongUse, match="the traces are"):
        cli.shape("8xnone_such")


@given(st.floats(0, 1e6), st.integers(1, 100), st.integers(1, 99))
def test_engines_step_one_after_another(now: float, rate: int, engines: int) -> None:
    """Spread evenly over a step, whenever their first stream comes, and never before a whole step is over."""
    period = 1 / rate
    steps = sorted(Beat(rate, engines, number).first_after(now) for number in range(engines))
    assert all(now + period * 0.99 <= at <= now + 2.01 * period for at in steps)
    for one, other in itertools.pairwise(steps):
        assert other - one == pytest.approx(period / engines, abs=1e-6)


async def test_an_engine_plays_a_trace_for_whoever_asks(tmp_path: Path) -> None:
    """In its rhythm: steps of eight at once, and as many tokens as it had in that time."""
    file = tmp_path / "runs.jsonl"
    shape: Shape = cli.shape("16xvllm_8_streams")
    async with asyncio.timeout(60):
        await relay.measure([Direct()], [shape], 1, TIMING, file, lambda line: None)
    (run,) = record.read(file)
    assert isinstance(run, Run)
    assert (run.loaded.wrong, run.loaded.lost) == (0, 0)
    assert run.loaded.tokens == pytest.approx(shape.asked * run.loaded.seconds, rel=0.4)

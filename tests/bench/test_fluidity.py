"""How an answer reads: the measure, the traces, and what the three pacings do to them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from bench.cli import fluidity as write_page
from bench.fluidity import SLACK, fluidity
from bench.pacing import AsItComes, Ours
from bench.trace import Token, Trace, jittered, recorded, steady

PAGE = Path(__file__).parent.parent.parent / "docs/fluidity.md"
WINDOW = 0.08


def stream(*times: float) -> list[Token]:
    return [Token(at, "x") for at in times]


def test_a_late_token_moves_the_reader_and_counts_once() -> None:
    came = stream(0.0, 0.1, 0.2, 0.3, 0.4)
    late = [0.0, 0.1, 0.2 + SLACK + 0.05, 0.3 + SLACK + 0.05, 0.4 + SLACK + 0.05]
    assert fluidity([came], [late]).on_time == pytest.approx(4 / 5)
    assert fluidity([came], [[token.at for token in came]]).on_time == 1.0


def test_what_was_held_and_what_jumps_is_told() -> None:
    came = stream(0.0, 0.1, 0.2)
    found = fluidity([came], [[0.0, 0.205, 0.21]])
    assert found.together == 2
    assert found.behind == pytest.approx(10)


def test_a_swallowed_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        fluidity([stream(0.0, 0.1)], [[0.0]])


def test_the_traces_are_what_is_said_of_them() -> None:
    traces = recorded()
    assert [trace.name for trace in traces] == ["smollm2_8_staggered", "smollm2_8_streams", "vllm_8_streams"]
    for trace in traces:
        assert len(trace.streams) == 8
        assert all(before.at <= after.at for stream in trace.streams for before, after in pairwise(stream))


def test_jitter_keeps_the_tokens_and_the_length_of_an_answer() -> None:
    for trace in recorded():
        for before, after in zip(trace.streams, jittered(trace, 5).streams, strict=True):
            assert [token.text for token in after] == [token.text for token in before]
            assert after[-1].at == pytest.approx(before[-1].at)
            assert all(earlier.at <= later.at for earlier, later in pairwise(after))


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("trace", recorded(), ids=lambda trace: trace.name)
def test_the_pacer_takes_nothing_from_a_reader_and_makes_no_jump_larger(trace: Trace, times: float) -> None:
    streams = jittered(trace, times).streams
    without = fluidity(streams, AsItComes().shown(streams))
    paced = fluidity(streams, Ours().shown(streams))
    assert paced.on_time >= without.on_time - 0.001
    assert paced.together <= without.together
    assert paced.held_p99 <= 1000 * WINDOW + 1e-6


def test_the_pacer_does_not_slow_a_quick_engine() -> None:
    streams = steady(300, 5).streams
    found = fluidity(streams, Ours().shown(streams))
    assert found.rate == found.engine_rate
    assert found.behind == 0


def test_the_page_is_the_committed_one() -> None:
    """But for the peer, which only `make bench-peers` brings."""
    committed = PAGE.read_text()
    for line in write_page("x").splitlines():
        if line.startswith("| ") and "smoothStream" not in line:
            assert line in committed

"""What the hot path counts with says what prometheus_client would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from broker.bus.tally import Counts, Spreads

BOUNDS = (0.001, 0.01, 0.5, 1, 10)


def exposed(registry: CollectorRegistry) -> list[str]:
    """Without the times at which the library's children were made."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.floats(min_value=0, max_value=20, allow_nan=False) | st.sampled_from(BOUNDS)))
def test_a_histogram_reads_as_the_librarys(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    spread = Spreads("t_seconds", "Times", ["model"], buckets=BOUNDS, registry=ours).labels("m")
    histogram = Histogram("t_seconds", "Times", ["model"], buckets=BOUNDS, registry=theirs).labels("m")
    for value in values:
        spread.observe(value)
        histogram.observe(value)
    assert exposed(ours) == exposed(theirs)


@pytest.mark.parametrize("labels", [(), ("model",)])
def test_a_counter_reads_as_the_librarys(labels: tuple[str, ...]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts, counter = (
        Counts("n_total", "Things", labels, registry=ours),
        Counter("n_total", "Things", labels, registry=theirs),
    )
    assert exposed(ours) == exposed(theirs)
    for amount in (1, 2.5):
        counts.labels(*(["m"] * len(labels))).inc(amount)
        (counter.labels("m") if labels else counter).inc(amount)
    assert exposed(ours) == exposed(theirs)


def test_a_name_is_taken_once() -> None:
    registry = CollectorRegistry()
    Counts("n_total", "Things", registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Counts("n_total", "Things", registry=registry)

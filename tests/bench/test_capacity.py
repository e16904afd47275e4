"""The capacity model finds what it was made of, and its plan carries what it was asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import capacity, cli, plan_page
from bench.capacity import BUSY, Demand, Fit, Point
from bench.ours import AT_ONCE
from bench.record import Shape
from bench.summary import PATH, Row

SHAPES = [
    Shape(50, 20),
    Shape(300, 20),
    Shape(1000, 20),
    Shape(300, 100),
    Shape(5000, 2),
    Shape(1000, 0),
    Shape(5000, 0),
]
COSTS = st.floats(min_value=0, max_value=500)


def measured(token: float, active: float, open_: float, base: float, role: str = "node") -> list[Point]:
    return [
        Point(
            shape,
            shape.asked,
            {role: (token * shape.asked + (active * bool(shape.rate) + open_) * shape.streams + base) / 1e6},
        )
        for shape in SHAPES
    ]


@given(st.floats(min_value=1, max_value=500), COSTS, COSTS, st.floats(min_value=100, max_value=50_000))
def test_a_load_that_is_linear_is_found_as_it_is(token: float, active: float, open_: float, base: float) -> None:
    found = capacity.fit(measured(token, active, open_, base), "node")
    assert max(abs(error) for error in found.errors.values()) < 1e-6
    wanted = pytest.approx((token, active, open_, base), rel=1e-3, abs=1e-2)
    assert (found.token, found.active, found.open, found.base) == wanted


def test_a_worker_pays_for_streams_in_an_answer_alone() -> None:
    """It knows nothing of the others, so whatever it used besides is its base."""
    found = capacity.fit(measured(20, 10, 1, 1000, "worker"), "worker")
    assert found.open == 0
    assert found.active > 0
    assert found.cores(0, 0, 10**7) == found.base / 1e6


def test_nothing_costs_less_than_nothing_and_the_error_is_told() -> None:
    """A base below zero would explain these best; it is not what a process can have."""
    points = measured(20, 0, 0, 100)
    points[0] = points[0].__class__(points[0].shape, points[0].tokens, {"node": points[0].cores["node"] / 4})
    found = capacity.fit(points, "node")
    assert min(found.token, found.active, found.open, found.base) >= 0
    assert found.errors[SHAPES[0]] > 0.4


def test_what_was_measured_with_each_token_at_once_counts_where_it_was() -> None:
    def row(contender: str, nats: float) -> Row:
        return cast(Row, SimpleNamespace(contender=contender, rate=1000.0, used={"nats": nats}))

    few, many, idle = Shape(50, 20), Shape(1000, 20), Shape(1000, 0)
    found = {
        few: [row("ours, synced", 0.04), row("theirs", 1.0)],
        many: [row("ours, synced", 0.005), row(f"ours, synced{AT_ONCE}", 0.015)],
        Shape(50, 20, viewers=3): [row("ours, synced", 0.009)],
        idle: [row("ours", 0.001)],
        Shape(300, 20): [row("ours", 0.1)],
    }
    points = capacity.points(found, "ours, synced")
    assert [(one.shape, one.cores["nats"]) for one in points] == [(few, 0.04), (many, 0.015), (idle, 0.001)]


def test_two_shapes_are_not_enough() -> None:
    with pytest.raises(ValueError, match="three"):
        capacity.fit(measured(1, 1, 1, 1)[:2], "node")


FITS = {role: Fit(20.0, 8.0, 2.0, 10_000.0, {}) for role in PATH}
FITS_WITH_ERRORS = {role: Fit(20.0, 8.0, 2.0, 10_000.0, {SHAPES[0]: -0.1}) for role in PATH}


@given(st.integers(1, 20_000_000), st.floats(min_value=1, max_value=50), st.floats(min_value=0.01, max_value=1))
def test_what_is_planned_has_the_cores_that_the_model_asks_for(sessions: int, rate: float, active: float) -> None:
    demand = Demand(sessions, rate, active, cores=16, replicas=3, streams=5000)
    planned = capacity.plan(demand, FITS, {"node": 40_000.0})
    for share in planned.shares:
        copies = 3 if share.role == "nats" else 1
        needed = copies * FITS[share.role].cores(demand.tokens, active * sessions, sessions, 0)
        have = share.machines * 16 if share.role == "nats" else share.processes
        assert needed <= have * BUSY + 1e-6
        assert share.processes <= share.machines * 16
    node = next(share for share in planned.shares if share.role == "node")
    assert node.processes * 5000 >= sessions
    assert node.memory * node.machines == pytest.approx(40_000.0 * sessions)
    assert planned.frames * planned.partitions == pytest.approx(demand.tokens)


def test_more_machines_than_partitions_can_feed_are_warned_of() -> None:
    crowded = capacity.plan(Demand(10_000_000, 20, 0.1, 1, 3, 5000), FITS, {})
    assert "partition" in crowded.warnings[0]
    assert not capacity.plan(Demand(100_000, 20, 0.1, 16, 3, 5000), FITS, {}).warnings


def test_more_frames_than_a_partition_is_planned_for_are_warned_of() -> None:
    (warning,) = capacity.plan(Demand(10_000_000, 20, 0.1, 64, 3, 5000), FITS, {}).warnings
    assert warning.startswith("15,432 frames/s are more than the 10,000")


@pytest.mark.parametrize("sessions", [1000, 50_000, 1_000_000])
def test_the_fullest_node_machine_holds_no_more_than_it_may_when_another_has_died(sessions: int) -> None:
    demand = Demand(sessions, 20, 0.1, 16, 3, 5000)
    planned, fleet, found = cli.balanced(demand, FITS, {}, 0.001, 0.1, 1.0)
    node = next(share for share in planned.shares if share.role == "node")
    assert fleet is not None
    assert found is not None
    assert found.balance * sessions / fleet.machines <= 16 * 5000
    assert found.after * sessions / max(1, fleet.machines - 1) <= 16 * 5000
    assert fleet.machines == max(2, node.machines)


def test_what_cannot_be_placed_is_warned_of_and_not_simulated() -> None:
    planned, fleet, found = cli.balanced(Demand(10_000_000, 20, 0.1, 1, 3, 5000), FITS, {}, 0.001, 0.1, 1.0)
    assert "not simulated" in planned.warnings[-1]
    assert (fleet, found) == (None, None)
    text = plan_page.page(planned, FITS_WITH_ERRORS, "okome", fleet, found, 0.1, 1.0, "a command")
    assert "not simulated.**" in text
    assert "their median with signs is -10%" in text
    assert "If a machine dies" not in text


def test_a_role_that_a_contender_does_not_have_is_said_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="no nats used anything where 50 × 20/s"):
        capacity.fit([Point(shape, shape.asked, {"nats": 0.0}) for shape in SHAPES], "nats")

"""Numbers of a report are exact, and nothing that failed to prove itself is counted as if it had."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from compose.chaos.record import Line, Violation
from compose.chaos.report_tables import figures
from compose.chaos.report_text import text
from compose.chaos.scenarios import CATALOGUE
from compose.chaos.summary import BUCKETS, EDGES, distribution, summarize
from compose.chaos.wording import remarks
from tests.chaos.records import ended, fault, played, run


def test_a_percentile_is_a_value_that_was_measured_with_so_many_at_or_below_it() -> None:
    rng = random.Random(5)
    for size in (1, 2, 3, 10, 99, 100, 101, 200, 1000):
        values = [round(rng.uniform(0.001, 40), 4) for _ in range(size)]
        found = distribution(values)
        assert found is not None
        for percent, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
            assert value in values
            assert sum(one <= value for one in values) >= size * percent / 100
            assert sum(one < value for one in values) < size * percent / 100
        assert found.max == max(values)
        assert found.count == sum(found.histogram) == size


def test_of_nothing_there_is_no_distribution() -> None:
    assert distribution([]) is None


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (0.005, 0), (29.9, BUCKETS - 1), (30.0, BUCKETS - 1), (99.0, BUCKETS - 1)]
)
def test_what_lies_outside_the_histogram_counts_in_its_nearest_bucket(seconds: float, bucket: int) -> None:
    found = distribution([seconds])
    assert found is not None
    assert found.histogram[bucket] == 1


def test_a_bucket_begins_with_its_edge_and_all_are_equally_wide_on_a_log_scale() -> None:
    found = distribution([EDGES[10], math.nextafter(EDGES[10], 0)])
    assert found is not None
    assert (found.histogram[10], found.histogram[9]) == (1, 1)
    ratios = [after / before for before, after in pairwise(EDGES)]
    assert max(ratios) / min(ratios) == pytest.approx(1, abs=0.001)


def test_all_that_was_counted_adds_up_by_scenario_and_in_total() -> None:
    lines: list[Line] = [
        run(),
        *(fault("node-kill", 0.1, 0.2), played("node-kill", figures={"back": [1.0]})),
        *(fault("page-cut", 0.3, round=2), played("page-cut", round=2, figures={"back": [3.0], "asked": [2.0]})),
        ended(),
    ]
    summary = summarize(lines, {})
    total = summary.total
    assert (total.rounds, total.faults, total.verified, total.violations) == (2, 2, 2, 0)
    assert (total.sessions, total.generations, total.tokens, total.connections) == (4, 6, 200, 8)
    assert (total.takeovers, total.resets) == (2, 0)
    assert total.gaps is not None
    assert (total.gaps.count, total.gaps.max) == (3, 0.3)
    assert total.figures["back"].max == 3.0
    assert list(summary.scenarios) == ["node-kill", "page-cut"]
    assert list(summary.scenarios["node-kill"].figures) == ["back"]
    assert summary.scenarios["page-cut"].tokens == 100


def test_a_p99_at_its_bound_is_within_and_beyond_it_over() -> None:
    lines: list[Line] = [
        run(),
        fault("even", 0.25),
        fault("over", 0.2501),
        fault("free", 9.0),
        fault("silent"),
        ended(),
    ]
    summary = summarize(lines, {"even": 0.25, "over": 0.25, "silent": 0.25})
    within = {name: outcome.within for name, outcome in summary.scenarios.items()}
    assert within == {"even": True, "over": False, "free": None, "silent": None}
    assert summary.over == ["over"]


def test_a_fault_that_was_not_verified_is_listed_and_its_gaps_are_not_counted() -> None:
    """Nothing was hurt: a gap beside it would flatter, or blame, a scenario that was not played."""
    lines: list[Line] = [run(), fault("node-kill", 0.1), fault("node-kill", 9.0, verified=False, round=2), ended()]
    summary = summarize(lines, {})
    assert summary.total.gaps is not None
    assert summary.total.gaps.max == 0.1
    assert [strike.round for strike in summary.unverified] == [2]
    assert not summary.passed(control=False)


def test_a_violation_is_listed_with_the_command_that_plays_its_round_again() -> None:
    broken = Violation("gap", "s1", "token 4 is missing")
    summary = summarize([run(), fault(), played("node-kill", broken), ended()], {})
    (found,) = summary.violations
    assert (found.rule, found.session, found.detail) == ("gap", "s1", "token 4 is missing")
    assert found.replay == "okome chaos --seed 7 --scenario node-kill --round 1"
    assert not summary.passed(control=False)


def test_a_run_without_its_end_is_cut_off_and_what_it_saw_is_counted() -> None:
    """Its last fault has no round yet, so that the run itself is what can be played again."""
    summary = summarize([run(), fault(), played(), fault("page-cut", 0.4, verified=False, at=30.0, round=2)], {})
    (system,) = summary.systems
    assert system.cut_off
    assert (system.rounds, system.faults, system.seconds) == (1, 2, 30.5)
    assert summary.total.faults == 2
    assert summary.unverified[0].replay == "okome chaos --seed 7"


@pytest.mark.parametrize(("interrupted", "cut_off"), [(True, True), (False, False)])
def test_a_run_that_ended_was_cut_off_only_if_it_says_so(interrupted: bool, cut_off: bool) -> None:
    (system,) = summarize([run(), ended(interrupted=interrupted)], {}).systems
    assert system.cut_off is cut_off
    assert system.seconds == 12.0


def test_an_ordinary_run_passes_when_faults_were_verified_and_nothing_broke() -> None:
    assert summarize([run(), fault("node-kill", 9.0), played(), ended()], {"node-kill": 0.1}).passed(control=False)


@pytest.mark.parametrize("lines", [[], [run()], [run(), ended()], [run(), played(), ended()]])
def test_where_nothing_was_struck_nothing_has_passed(lines: list[Line]) -> None:
    summary = summarize(lines, {})
    assert not summary.passed(control=False)
    assert not summary.passed(control=True)


def test_a_control_run_passes_when_no_fault_is_said_to_have_happened() -> None:
    summary = summarize([run(control=True), fault(verified=False), played(), ended()], {})
    assert summary.passed(control=True)
    assert (summary.total.faults, summary.total.decoys, summary.total.refused) == (0, 1, 1)
    assert summary.unverified == []


def test_a_control_run_fails_when_one_fault_is_believed_or_a_rule_is_broken() -> None:
    right: list[Line] = [run(control=True), fault(verified=False), played(), ended()]
    believed = summarize([*right, fault("page-cut", 0.2, round=2)], {})
    assert [strike.scenario for strike in believed.believed] == ["page-cut"]
    assert believed.total.gaps is None
    assert not believed.passed(control=True)
    broken = summarize([*right, played("page-cut", Violation("gap", "s", "…"), round=2)], {})
    assert not broken.passed(control=True)


def test_runs_of_one_sort_never_pass_for_the_other() -> None:
    """Records that were mixed up must not turn a control run's refusals into a success."""
    ordinary = summarize([run(), fault(), played(), ended()], {})
    control = summarize([run(control=True), fault(verified=False), played(), ended()], {})
    assert not ordinary.passed(control=True)
    assert not control.passed(control=False)


def test_a_scenario_is_left_out_only_where_no_run_played_it() -> None:
    lines: list[Line] = [
        run("a"),
        run("b"),
        fault("node-kill", run="b"),
        ended("a", left_out={"node-kill": "it needs a cluster", "disk-full": "mount is not permitted"}),
        ended("b"),
    ]
    assert summarize(lines, {}).left_out == {"disk-full": "mount is not permitted"}


def test_a_run_that_did_not_come_to_all_its_scenarios_did_not_pass_and_names_them() -> None:
    lines: list[Line] = [run(), fault("node-kill", 0.1), played(), ended(unplayed=("node-kill", "page-cut"))]
    summary = summarize(lines, {})
    assert summary.held
    assert summary.unplayed == ("page-cut",)
    assert not summary.passed(control=False)
    assert "1 scenario that belonged to it never came: page-cut." in remarks(summary)
    elsewhere: list[Line] = [run("b"), fault("page-cut", 0.1, run="b"), played("page-cut", run="b"), ended("b")]
    assert summarize([*lines, *elsewhere], {}).passed(control=False)


def test_a_figure_over_its_bound_is_named_and_does_not_fail_the_run() -> None:
    """It is of the machine as well. Over all scenarios that measured it; of what was not measured nothing is said."""
    lines: list[Line] = [
        run(),
        *(fault("node-kill", 0.1), played("node-kill", figures={"back": [0.1] * 3, "asked": [9.0]})),
        *(fault("page-cut", 0.1), played("page-cut", round=2, figures={"back": [3.0]})),
        ended(),
    ]
    summary = summarize(lines, {}, {"back": 1.0, "never": 1.0})
    assert summary.late == ["back"]
    assert summary.scenarios["node-kill"].late == []
    assert summary.scenarios["node-kill"].figure_bounds == {"back": 1.0}
    assert summary.passed(control=False)
    assert "The p99 of 1 figure is over its bound: back." in remarks(summary)
    assert "3.00 s   3.00 s 1 s OVER" in text(summary)
    assert "over 1 s" in figures(summary)
    assert summarize(lines, {}, {"back": 3.0}).late == []


def test_what_is_measured_beside_gaps_has_bounds_of_its_own() -> None:
    """A cancel has a bound, and so has whoever comes late: both measure times that are no gaps."""
    assert CATALOGUE["page-refused"].bound is None
    for name, measured in {
        "page-refused": {"attached_to_first_event"},
        "cancel-mid-decode": {"cancel_to_stopped_mid_decode", "cancel_to_worker_stopped_mid_decode"},
        "cancel-unbegun": {"cancel_to_stopped_unbegun", "cancel_to_worker_stopped_unbegun"},
        "cancel-queued": {"cancel_to_stopped_queued", "cancel_to_worker_stopped_queued"},
        "cancel-twice-and-late": {"cancel_to_stopped"},
    }.items():
        assert CATALOGUE[name].figures.keys() == measured, name
        assert measured <= CATALOGUE.figures.keys()

"""However many faults there were, the timeline stays small, and the longest gaps are in it."""

from __future__ import annotations

import re

from compose.chaos.record import Line
from compose.chaos.report_timeline import FAULTS_DRAWN, GAPS_DRAWN, HUES, ROWS, hues, rows
from compose.chaos.summary import Summary, summarize
from tests.chaos.records import ended, fault, run


def _long(faults: int, *, viewers: int = 1, longest: dict[int, float] | None = None) -> Summary:
    """Two runs and three scenarios by turns. `longest`: the gap of these faults, in seconds; else it is 100 ms."""
    lines: list[Line] = [run("a"), run("b")]
    for index in range(faults):
        gaps = [(longest or {}).get(index, 0.1), *(0.02 + 0.00001 * (index + viewer) for viewer in range(viewers - 1))]
        scenario = f"{('node', 'link', 'worker')[index % 3]}-kill"
        lines.append(fault(scenario, *gaps, at=index * 2.0, run="ab"[index % 2], round=index))
    return summarize([*lines, ended("a"), ended("b")], {})


def test_all_faults_are_drawn_where_there_are_not_too_many() -> None:
    drawn, left_out = rows(_long(FAULTS_DRAWN))
    assert "".join(drawn).count("<title>") == FAULTS_DRAWN
    assert left_out == ""


def test_of_too_many_faults_some_are_drawn_and_the_longest_gap_of_each_scenario_and_run_is_among_them() -> None:
    """Wherever it lies: what is drawn of the others is every second or third."""
    for place in range(3):
        longest = {3_000 + place: 20.0, 4_000 + place: 21.0, 7_001 + place: 22.0}
        drawn, left_out = rows(_long(2 * FAULTS_DRAWN, longest=longest))
        source = "".join(drawn)
        for seconds in ("20.0 s", "21.0 s", "22.0 s"):
            assert f"gap {seconds}</title>" in source
        assert source.count("<title>") <= FAULTS_DRAWN + 5
        assert re.fullmatch(r"\d.\d{3} of 8.000 faults are drawn, with the longest gap of each .*", left_out)


def test_of_too_many_gaps_every_faults_longest_is_drawn() -> None:
    drawn, left_out = rows(_long(1_000, viewers=60))
    source = "".join(drawn)
    large = "".join(re.findall(r'class="peak h\d" d="([^"]*)"', source))
    small = "".join(re.findall(r'class="dot h\d" d="([^"]*)"', source))
    assert large.count("M") == 1_000
    assert 0 < small.count("M") <= GAPS_DRAWN
    assert left_out == "of each fault’s gaps the longest and every 3rd of the others are drawn"


def test_runs_have_rows_of_their_own_until_there_are_too_many_then_one_for_each_target() -> None:
    for number, lanes in ((ROWS, ROWS), (ROWS + 1, 1)):
        ids = [f"r{index}" for index in range(number)]
        lines: list[Line] = [line for id in ids for line in (run(id), fault("node-kill", 0.1, run=id), ended(id))]
        drawn, _ = rows(summarize(lines, {}))
        assert len(drawn) == lanes + 1  # the time axis is the last
        assert "".join(drawn).count("<title>") == number


def test_the_most_frequent_kinds_of_fault_have_colours_of_their_own() -> None:
    lines: list[Line] = [run()]
    for index in range(HUES + 2):
        lines += [fault(f"{chr(ord('a') + index)}-kill", round=number) for number in range(3 if index else 1)]
    colours = hues(summarize(lines, {}).strikes)
    assert [kind for kind, hue in colours.items() if hue == "hx"] == ["a", "k"]
    assert len(set(colours.values())) == HUES + 1

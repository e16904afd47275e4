"""The page puts first what matters, and the file on disk is that page."""

from __future__ import annotations

import re
from pathlib import Path

from compose.chaos import report
from compose.chaos.record import Line, Violation
from compose.chaos.report_page import page
from compose.chaos.summary import summarize
from tests.chaos.records import ended, fault, played, run


def _sections(lines: list[Line]) -> list[str]:
    return re.findall(r'<section id="([a-z-]+)">', page(summarize(lines, {}), {}))


def test_what_broke_stands_before_all_else_and_else_behind() -> None:
    held: list[Line] = [run(), fault("node-kill", 0.1), played(), ended()]
    assert _sections(held) == ["scenarios", "gaps", "timeline", "violations"]
    for broken in (fault(verified=False, round=2), played("node-kill", Violation("gap", "s", "…"), round=2)):
        assert _sections([*held[:3], broken, ended()])[0] == "violations"


def test_every_link_at_the_head_leads_to_a_section_that_is_there() -> None:
    control: list[Line] = [run(control=True), fault(verified=False), played(figures={"back": [1.0]}), ended()]
    held: list[Line] = [run(), fault("node-kill", 0.1), played(), ended()]
    empty: list[Line] = [run()]
    for lines in (empty, control, held):
        source = page(summarize(lines, {}), {})
        assert set(re.findall(r'href="#([a-z-]+)"', source)) <= set(re.findall(r' id="([a-z-]+)"', source))


def test_a_control_run_has_no_columns_for_gaps_and_a_mixed_one_shows_both_sorts() -> None:
    control: list[Line] = [run("c", control=True), fault(run="c", verified=False), ended("c")]
    alone = page(summarize(control, {}), {})
    assert ">Wrong targets</th>" in alone
    assert ">p99</th>" not in alone
    mixed = page(summarize([*control, run(), fault("node-kill", 0.1), ended()], {}), {})
    assert ">Verified</th>" in mixed
    assert '<td class="number" data-label="Control">1 of 1</td>' in mixed
    assert "In control runs, where every fault struck a wrong target, 1 of 1 were reported" in mixed


def test_the_file_is_the_page_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    summary = summarize([run(), fault("node-kill", 0.1), played(), ended()], {"node-kill": 0.25})
    report.write(summary, tmp_path, {"node-kill": "a node is killed"})
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(summary, {"node-kill": "a node is killed"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]

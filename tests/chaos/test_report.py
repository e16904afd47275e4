"""What a report says is what was recorded, in words that cannot be mistaken, and nothing in it is ever run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from compose.chaos import report
from compose.chaos.record import Line, Violation
from compose.chaos.report_page import page
from compose.chaos.summary import Summary, summarize
from tests.chaos.records import ended, fault, played, run

NASTY = "<script>alert('x')</script>\"&amp;\x00\x1b[31m"
_VOID = {"meta", "br", "hr", "img", "link", "input"}


class _Page(HTMLParser):
    """Its text by element, its commands, and whether all that was opened is closed again."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self.commands: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "pre":
            self.commands.append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            self.commands[-1] += data
        if self.open:
            self.words.setdefault(self.open[-1], []).append(data)

    def text(self) -> str:
        return " ".join("".join(part for words in self.words.values() for part in [*words, " "]).split())


def _held() -> Summary:
    return summarize(
        [run(), fault("node-kill", 0.1, 0.2), played(figures={"node_back": [1.5]}), ended()], {"node-kill": 0.25}
    )


def _broken() -> Summary:
    violation = Violation("gap", "s-77", "token 4 is missing")
    lines: list[Line] = [
        run(),
        *(fault("node-kill", 0.1), played("node-kill", violation)),
        *(fault("page-cut", round=2, verified=False, proof="the link still carries"), played("page-cut", round=2)),
        ended(),
    ]
    return summarize(lines, {})


def _many(faults: int, viewers: int) -> Summary:
    lines: list[Line] = [run("a"), run("b")]
    for index in range(faults):
        of, name = "ab"[index % 2], f"{('node', 'link', 'worker')[index % 3]}-{index % 50}"
        gaps = [0.02 + (index * viewers + viewer) % 977 / 1000 for viewer in range(viewers)]
        gaps[-1] = 29.0 if index == faults // 3 else gaps[-1]
        lines += [fault(name, *gaps, at=index * 1.5, run=of, round=index), played(name, run=of, round=index)]
    return summarize([*lines, ended("a"), ended("b")], {})


def _drawn(source: str, size: str) -> list[str]:
    """How far from the top of its row each gap is."""
    paths = re.findall(rf'class="{size} [^"]*" d="([^"]*)"', source)
    return [y for path in paths for y in re.findall(r"M\S+ (\S+?)h0", path)]


def test_the_page_needs_nothing_but_itself_and_runs_nothing() -> None:
    source = page(_broken(), {})
    tags = _Page(source).tags
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & {tag for tag, _ in tags}
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "style")], tag
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in source
    assert "@import" not in source


def test_whatever_a_run_recorded_is_text_on_the_page() -> None:
    """A detail quotes what clients were sent, a machine names itself, a reason is an error's message."""
    struck = msgspec.structs.replace(fault(NASTY, 0.1, verified=False, proof=NASTY), victim=NASTY)
    judged = msgspec.structs.replace(
        played(NASTY, Violation(NASTY, NASTY, NASTY), figures={NASTY: [1.0]}), replay=NASTY
    )
    began = msgspec.structs.replace(run(began=NASTY), target=NASTY, command=NASTY, machine=NASTY, version=NASTY)
    summary = summarize([began, struck, judged, fault("z", 0.1), ended(left_out={NASTY + "2": NASTY})], {NASTY: 1.0})
    source = page(summary, {NASTY: NASTY})
    found = _Page(source)
    assert "script" not in {tag for tag, _ in found.tags}
    assert "<script" not in source
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", source)
    assert source.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&quot;&amp;amp;") > 10


def test_every_picture_is_well_formed() -> None:
    pictures = re.findall(r"<svg.*?</svg>", page(_held(), {}), re.DOTALL)
    assert len(pictures) > 5
    for picture in pictures:
        ElementTree.fromstring(picture)


def test_the_page_says_first_what_came_of_it() -> None:
    def heading(summary: Summary) -> str:
        return " ".join("".join(_Page(page(summary, {})).words["h1"]).split())

    assert heading(_held()) == "1 fault injected and verified in 1 scenario, 0 violations."
    assert heading(_broken()) == "1 of 2 injected faults verified in 2 scenarios, 1 violation."
    control = summarize([run(control=True), fault(verified=False), played(), ended()], {})
    assert heading(control).startswith("Control run: every fault struck a wrong target; 1 of 1 were reported")
    assert heading(summarize([], {})) == "No fault was injected, 0 violations."


@pytest.mark.parametrize("lines", [[run(), fault(), played()], [run(), fault(), played(), ended(interrupted=True)]])
def test_a_run_that_was_cut_off_is_said_to_be(lines: list[Line]) -> None:
    summary = summarize(lines, {})
    assert "cut off" in _Page(page(summary, {})).text()
    assert "cut off" in report.text(summary)
    assert "cut off" not in report.text(summarize([*lines[:3], ended()], {}))


def test_a_violation_and_an_unverified_fault_stand_there_with_their_replay_commands() -> None:
    found = _Page(page(_broken(), {}))
    for name, number in (("node-kill", 1), ("page-cut", 2)):
        assert f"okome chaos --seed 7 --scenario {name} --round {number}" in found.commands
    for words in ("token 4 is missing", "the link still carries"):
        assert words in found.text()
        assert words in report.text(_broken())


def test_over_and_within_a_bound_is_said_in_words() -> None:
    lines: list[Line] = [run(), fault("node-kill", 0.3), fault("page-cut", 0.3), fault("worker-kill", 0.3), ended()]
    found = _Page(page(summarize(lines, {"node-kill": 0.25, "page-cut": 0.5}), {"page-cut": "a page is cut"})).text()
    assert "over 250 ms" in found
    assert "within 500 ms" in found
    assert "no bound" in found
    assert "a page is cut" in found


def test_scenarios_that_were_left_out_stand_there_with_the_reason() -> None:
    summary = summarize([run(), ended(left_out={"disk-full": "mount is not permitted"})], {})
    for told in (_Page(page(summary, {})).text(), report.text(summary)):
        assert "disk-full" in told
        assert "mount is not permitted" in told
        assert "1 scenario was left out" in told


def test_a_large_run_is_a_small_page_that_shows_its_longest_gap_and_says_what_it_does_not_show() -> None:
    small, large = page(_many(2000, 8), {}), page(_many(2000, 40), {})
    assert len(small.encode()) < len(large.encode()) < 2_000_000
    assert "29.0 s" in large
    assert "are drawn" in large
    assert "are drawn" not in small
    heights = {size: [float(y) for y in _drawn(large, size)] for size in ("peak", "dot")}
    assert min(heights["peak"]) < min(heights["dot"])
    assert heights["peak"].count(min(heights["peak"])) == 1


def test_a_page_of_nothing_but_violations_stays_small_and_says_where_the_rest_is() -> None:
    lines: list[Line] = [run()]
    for number in range(300):
        violations = [Violation("gap", f"s{index}", "x" * 5000) for index in range(60)]
        lines += [fault(round=number), played("node-kill", *violations, round=number)]
    source = page(summarize(lines, {}), {})
    assert len(source.encode()) < 2_000_000
    assert "more rounds stand in report.json" in source
    assert "more of this round stand in report.json" in source


def test_the_terminal_gets_at_most_a_hundred_columns_beside_commands() -> None:
    lines: list[Line] = [run()]
    for name in ("node-" + "x" * 40, "ack-lost"):
        lines += [fault(name, 0.2512, 12.3456, verified=True), played(name, Violation("gap", "s" * 30, "word " * 300))]
        lines += [fault(name, 0.2512, round=2, verified=False, proof="\x1b[2J" + "long " * 90)]
    told = report.text(summarize([*lines, ended(left_out={"disk": "no " * 90})], {"ack-lost": 0.25}))
    assert "250 ms OVER" in told
    assert max(len(line) for line in told.split("\n") if not line.startswith("    okome chaos")) <= 100
    assert all(char.isprintable() or char == "\n" for char in told)


def test_scenario_names_are_never_broken_at_their_dashes() -> None:
    names = [f"node-link-half-open-{index}" for index in range(8)]
    told = report.text(summarize([run(), *(fault(name, 1.0) for name in names), ended()], dict.fromkeys(names, 0.1)))
    remark = told.partition("SCENARIO")[0]
    assert all(name in remark for name in names)


def test_the_machine_readable_report_has_what_the_page_was_made_of(tmp_path: Path) -> None:
    report.write(_broken(), tmp_path / "new", {})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.html", "report.json"]
    found = msgspec.json.decode((tmp_path / "new" / "report.json").read_bytes())
    assert (found["format"], found["held"], found["control"]) == (1, False, False)
    assert found["scenarios"]["node-kill"]["gaps"]["max"] == 0.1
    assert found["violations"][0]["replay"] == "okome chaos --seed 7 --scenario node-kill --round 1"
    assert [one["scenario"] for one in found["unverified"]] == ["page-cut"]
    assert found["systems"][0]["command"] == "okome chaos --seed 7"

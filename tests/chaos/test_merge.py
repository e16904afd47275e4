"""Runs of several directories become one report: nothing twice, nothing lost, and nothing written where it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from compose.chaos import record
from compose.chaos.merge import JOINED, merge
from tests.chaos.records import ended, fault, played, run, write


def _two(tmp_path: Path) -> list[Path]:
    """The later run stands in the directory that is named first."""
    late, early = tmp_path / "late", tmp_path / "early"
    write(late / "b.jsonl", run("b", began="2026-03-02T10:00:00+00:00"), fault(run="b"), ended("b"))
    write(early / "a.jsonl", run("a"), fault(), played(), ended())
    return [late, early]


def test_runs_are_joined_by_when_they_began_and_a_report_is_made_of_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = merge(_two(tmp_path), out)
    assert [system.id for system in summary.systems] == ["a", "b"]
    assert summary.total.faults == 2
    whole = [
        run("a"),
        fault(),
        played(),
        ended(),
        run("b", began="2026-03-02T10:00:00+00:00"),
        fault(run="b"),
        ended("b"),
    ]
    assert record.read(out / JOINED) == whole
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", JOINED]


def test_the_order_of_the_directories_changes_nothing(tmp_path: Path) -> None:
    one, other = _two(tmp_path)
    merge([one, other], tmp_path / "x")
    merge([other, one], tmp_path / "y")
    assert (tmp_path / "x" / JOINED).read_bytes() == (tmp_path / "y" / JOINED).read_bytes()


def test_a_run_that_stands_in_several_places_is_taken_once_where_it_is_longest(tmp_path: Path) -> None:
    write(tmp_path / "cut" / "a.jsonl", run(), fault())
    write(tmp_path / "whole" / "a.jsonl", run(), fault(), played(), ended())
    for order in (["cut", "whole"], ["whole", "cut"]):
        summary = merge([tmp_path / name for name in order], tmp_path / "out")
        assert (summary.total.faults, summary.total.rounds) == (1, 1)
        assert not summary.cut_off


def test_merging_a_directory_into_itself_again_gives_the_same(tmp_path: Path) -> None:
    """So the page can be made again by the command at its foot."""
    write(tmp_path / "a.jsonl", run(), fault("node-kill", 0.1), played(), ended())
    merge([tmp_path], tmp_path)
    before = [(tmp_path / name).read_bytes() for name in (JOINED, "report.json", "report.html")]
    merge([tmp_path], tmp_path)
    assert [(tmp_path / name).read_bytes() for name in (JOINED, "report.json", "report.html")] == before


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a" / "a.jsonl", run(), fault(), played())
    path.write_bytes(path.read_bytes()[:-20])
    summary = merge([tmp_path / "a"], tmp_path / "out")
    assert (summary.total.faults, summary.total.rounds) == (1, 0)
    assert summary.cut_off


@pytest.mark.parametrize("content", [None, b"", b'{"kind":"run","id'])
def test_a_directory_without_a_run_is_named_and_nothing_is_written(tmp_path: Path, content: bytes | None) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    if content is not None:
        (empty / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="empty"):
        merge([*_two(tmp_path), empty], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such directory"):
        merge([tmp_path / "nowhere"], tmp_path / "out")


@pytest.mark.parametrize("broken", [b"not json\n", b'{"kind":"feast"}\n', b'{"kind":"ended","run":"\xff"}\n'])
def test_a_broken_line_is_named_with_its_file_and_nothing_is_written(tmp_path: Path, broken: bytes) -> None:
    path = write(tmp_path / "a" / "spoilt.jsonl", run(), fault())
    path.write_bytes(path.read_bytes() + broken)
    with pytest.raises(ValueError, match=r"spoilt\.jsonl"):
        merge([tmp_path / "a"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_line_of_a_run_that_does_not_begin_in_its_file_is_refused(tmp_path: Path) -> None:
    """Half of a run would pass for a whole one."""
    write(tmp_path / "a" / "orphans.jsonl", run("a"), fault(run="b"))
    with pytest.raises(ValueError, match=r"orphans\.jsonl.*'b'"):
        merge([tmp_path / "a"], tmp_path / "out")

"""Joins the records of several fault runs, from here or from other machines, into one report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from compose.chaos import record, report
from compose.chaos.record import Line, Run
from compose.chaos.scenarios import CATALOGUE
from compose.chaos.summary import Summary, summarize

JOINED = "run.jsonl"


def merge(directories: Sequence[Path], out: Path) -> Summary:
    """Write `run.jsonl`, report.json and report.html to `out`, which is made, and may be one of the directories.

    A run that stands in several files is taken once, where it is longest. The outcome does not depend on the order of
    the directories. Raises ValueError for a directory without a run and for a broken line; OSError. Then nothing is
    written.
    """
    runs: dict[str, list[Line]] = {}
    for directory in directories:
        found = read(directory)
        if not found:
            raise ValueError(f"{directory}: there is no fault run in it")
        for id, lines in found.items():
            if len(lines) > len(runs.get(id, [])):
                runs[id] = lines
    lines = [line for _, id in sorted((_run(runs[id]).began, id) for id in runs) for line in runs[id]]
    summary = summarize(lines, CATALOGUE.bounds, CATALOGUE.figures)
    out.mkdir(parents=True, exist_ok=True)
    parts = out / (JOINED + ".part")
    with parts.open("wb") as joined:
        for line in lines:
            record.write(joined, line)
    os.replace(parts, out / JOINED)
    report.write(summary, out, {one.name: one.sentence for one in CATALOGUE.values()})
    return summary


def read(directory: Path) -> dict[str, list[Line]]:
    """The runs in a directory's `*.jsonl`, by id, each beginning with its Run. Raises ValueError, OSError."""
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory")
    runs: dict[str, list[Line]] = {}
    for path in sorted(directory.glob("*.jsonl")):
        here: dict[str, list[Line]] = {}
        try:
            found = record.read(path)
        except UnicodeDecodeError as error:  # a ValueError, but one that does not name the file
            raise ValueError(f"{path}: {error}") from error
        for line in found:
            if isinstance(line, Run):
                here.setdefault(line.id, [line])
            elif line.run in here:
                here[line.run].append(line)
            else:
                raise ValueError(f"{path}: a line of run {line.run!r}, which does not begin in this file")
        for id, lines in here.items():
            if len(lines) > len(runs.get(id, [])):
                runs[id] = lines
    return runs


def _run(lines: Sequence[Line]) -> Run:
    first = lines[0]
    assert isinstance(first, Run)
    return first

"""docs/fluidity.md: how answers read, with the pacer and without. Pure.

The sentences stand in `fluidity.md` beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

from bench.fluidity import Fluidity
from bench.markdown import line

TEMPLATE = Path(__file__).with_name("fluidity.md")


class Row(NamedTuple):
    trace: str
    pacing: str
    found: Fluidity


def page(rows: Sequence[Row], missing: Mapping[str, str], command: str) -> str:
    """The whole page. A name in the template that there is no figure for is a KeyError."""
    absent = "".join(
        f"\n{name} is not in this table, because it was not installed: `{cure}`.\n" for name, cure in missing.items()
    )
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        command=command, table="\n".join(map(_row, rows)), missing=absent
    )


def _row(row: Row) -> str:
    found = row.found
    cells = (
        row.trace,
        row.pacing,
        f"{found.on_time:.3f}",
        str(found.together),
        f"{found.held_p99:.0f} ms",
        f"{found.behind:.0f} ms",
        f"{found.rate:.0f} of {found.engine_rate:.0f}",
    )
    return line(cells)

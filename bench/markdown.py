"""Tables as GitHub draws them. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head."""
    head, *others = [line(row) for row in rows]
    return "\n".join([head, line(["---"] * len(rows[0])), *others])


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

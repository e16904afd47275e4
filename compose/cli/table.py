"""What reading commands print: a table for people, plain columns for pipes, JSON when it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def as_json(value: Any) -> None:
    """The same value on every terminal: what one cannot write is written as JSON writes it in ASCII."""
    escaped = not sys.stdout.encoding.lower().startswith("utf")
    sys.stdout.write(json.dumps(value, ensure_ascii=escaped) + "\n")


def show(headings: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """On a terminal with headings; in a pipe one tab-separated line per row and nothing else."""
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(row) + "\n" for row in rows)
        return
    if not rows:
        sys.stderr.write(empty + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def pairs(values: dict[str, str]) -> None:
    """One `name: value` a line."""
    width = max(map(len, values), default=0) + 1 if sys.stdout.isatty() else 0
    sys.stdout.writelines(f"{f'{name}:':<{width}} {value}\n" for name, value in values.items())

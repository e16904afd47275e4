"""How `okome doctor` looks: findings, mistakes, then every setting, grouped by role; in a pipe one thing a line."""

from __future__ import annotations

import sys
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compose.cli.doctor import BAD, OK, WARN, Report

MARK = {OK: ("✓", "green"), WARN: ("!", "yellow"), BAD: ("✗", "red")}


def show(report: Report) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        _plain(report)
        return
    table = _grid()
    for finding in report.findings:
        mark, style = MARK[finding.state]
        table.add_row(
            Text(mark, style), Text(finding.what, "bold"), Text(finding.detail, "" if finding.state == OK else style)
        )
    console.print(table)
    if report.mistakes:
        console.print(Text("\nSettings that are wrong", "bold red"))
        table = _grid()
        for variable, why in report.mistakes.items():
            table.add_row(Text("✗", "red"), Text(variable, "bold"), Text(why, "red"))
        console.print(table)
    console.print(Text("\nSettings of a role that is started from here; • is what the environment says", "dim"))
    for role, settings in groupby(report.settings, key=lambda setting: setting.role):
        console.print(Text(f"\n{role}", "bold"))
        table = _grid()
        for setting in settings:
            # Bright is what the environment says, dim what is so by default.
            style = "" if setting.given else "dim"
            table.add_row(
                Text("•" if setting.given else " "), Text(setting.variable, style), Text(setting.value, style)
            )
        console.print(table)


def _plain(report: Report) -> None:
    sys.stdout.writelines(f"{finding.state}\t{finding.what}\t{finding.detail}\n" for finding in report.findings)
    sys.stdout.writelines(f"{BAD}\t{variable}\t{why}\n" for variable, why in report.mistakes.items())
    sys.stdout.writelines(f"{setting.variable}={setting.value}\n" for setting in report.settings)


def _grid() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table

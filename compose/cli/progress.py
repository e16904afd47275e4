"""What a person sees while faults strike: one line a round in a pipe, on a terminal one line a system."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from compose.chaos.fleet import Plan
from compose.chaos.record import Ended, Injection, Line, Round
from compose.chaos.run import Order


class _System:
    """One run as it goes."""

    def __init__(self, order: Order) -> None:
        self.name = order.id.rpartition("-")[0]
        self.wanted = order.faults
        self.struck = 0
        self.unverified = 0
        self.violations = 0
        self.state = "waiting"


class Progress:
    """`take` gets every record; a violation and a fault that did not happen are said at once, with their replay."""

    def __init__(self, plan: Plan, orders: Sequence[Order]) -> None:
        self._plan = plan
        self._console = Console(stderr=True, highlight=False, no_color="NO_COLOR" in os.environ or None)
        self._systems = {order.id: _System(order) for order in orders}
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        names = len(self._plan.scenarios)
        self._console.print(
            f"seed {self._plan.seed}: {names} scenarios, {len(self._systems)} systems, one after the other "
            f"in {min(self._plan.targets, len(self._systems))} places"
        )
        if sys.stderr.isatty():
            self._live = Live(self._table(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def take(self, order: Order, line: Line) -> None:
        system = self._systems[order.id]
        match line:
            case Injection():
                system.struck += 1
                if not line.verified:
                    system.unverified += 1
                    if not self._plan.control:
                        self._console.print(f"  {line.scenario} {line.round}: the fault did not happen: {line.proof}")
            case Round():
                system.violations += len(line.violations)
                system.state = f"{line.scenario} {line.round}"
                if self._live is None:
                    self._console.print(self._said(system, line))
                for violation in line.violations:
                    self._console.print(
                        f"  violation of {violation.rule!r} in {violation.session or 'the system'}: {violation.detail}"
                    )
                if line.violations:
                    self._console.print(f"  again: {line.replay}")
            case Ended():
                system.state = "interrupted" if line.interrupted else "ended"
                for name, why in line.left_out.items():
                    self._console.print(f"  {name} is left out: {why}")
            case _:
                system.state = "starting"
        if self._live is not None:
            self._live.update(self._table())

    def _said(self, system: _System, round: Round) -> str:
        verdict = "ok" if not round.violations else f"{len(round.violations)} VIOLATIONS"
        return (
            f"{system.name:<10} {system.struck:>4}/{system.wanted or '-':<4} {round.scenario:<22} {round.round:>4} "
            f"{round.tokens:>6} tokens {round.ended - round.began:5.1f} s  {verdict}"
        )

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
        for heading in ("SYSTEM", "FAULTS", "VIOLATIONS", "LAST ROUND"):
            table.add_column(heading)
        for one in self._systems.values():
            bad = Text(str(one.violations), style="bold red" if one.violations else "")
            table.add_row(one.name, f"{one.struck}/{one.wanted or '-'}", bad, Text(one.state))
        return table

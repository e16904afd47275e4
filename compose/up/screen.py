"""What `okome up` says to a person: progress on stderr, the one ready line on stdout, then almost nothing.

A terminal gets a list that fills itself; anything else gets plain lines. With `--json` stdout has only JSON lines.
What cannot be said, to a terminal that is gone or a full disk, is lost: nobody's restart depends on it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from broker.bus.lossy import Lossy
from broker.bus.version import VERSION
from compose.command import command
from compose.up.child import describe
from compose.up.keeper import Keeper, StartFailed, State

WHAT = {
    "nats": "the log of every session",
    "redis": "what may be forgotten",
    "control": "OKOME: sessions, routing",
    "node": "streams to clients",
    "worker": "runs the model",
    "ingress": "where clients connect",
}


class Screen:
    """`json` keeps stdout for JSON lines."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        said = cast(TextIO, Lossy(sys.stderr)) if sys.stderr else None  # None: closed before this process began
        self._console = Console(file=said, stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._keepers: list[Keeper] = []
        self._began = time.monotonic()
        self._up = False
        self._stopping = False
        self._restarts: dict[str, int] = {}

    # -- starting ----------------------------------------------------------------------------------------------------

    def starting(self, keepers: Sequence[Keeper]) -> None:
        self._keepers = list(keepers)
        if self._console.is_terminal:
            self._console.print(Text.assemble(("okome ", "bold"), (VERSION, "dim")))
            self._draw(self._progress)
        else:
            self._console.print(f"okome {VERSION}: starting {len(keepers)} processes")

    def changed(self, keeper: Keeper) -> None:
        """Called at every move of a part."""
        name = keeper.part.id
        if self._stopping:
            return
        if keeper.waits_for:
            if self._live is None:  # the list says it itself
                self._console.print(Text.assemble((f"{name} is not ready yet: ", "yellow"), keeper.waits_for))
            return
        if not self._up:
            if self._live is None and keeper.state is State.READY:
                self._console.print(f"{name}: ready after {keeper.took:.1f} s")
            return
        if keeper.state is State.DEAD:
            after = "left dead" if keeper.gone else "starting it again"
            end = "ended" if keeper.last_end == describe(0) else "died"  # drained by an operator, or not
            self._console.print(Text.assemble((f"{name} {end}", "yellow"), f" ({keeper.last_end}): {after}"))
        elif keeper.state is State.READY and keeper.restarts != self._restarts.get(name, 0):
            self._restarts[name] = keeper.restarts
            after = f" after {keeper.took:.1f} s, restart {keeper.restarts}"
            self._console.print(Text.assemble((f"{name} is back", "green"), after))

    def failed(self, failure: StartFailed) -> None:
        """The last lines of its log are shown, because a temporary directory takes the log with it."""
        self._end_live()
        if self._console.is_terminal:
            self._console.print()
        self._console.print(Text.assemble((f"{failure.part.id} did not start: ", "bold red"), failure.why))
        for line in failure.log:
            self._console.print(Text(f"  {line}", "dim"))
        if not failure.log:
            self._console.print(Text("  it wrote nothing", "dim"))

    def refused(self, message: str) -> None:
        self._end_live()
        self._console.print(Text.assemble(("okome up: ", "bold red"), message))

    def ready(self, *, url: str, page_url: str, new_key: str, data: Path, temporary: bool, ca: Path | None) -> None:
        """Says what to open, then the ready line. `new_key` is an API key that was made just now, else empty."""
        self._end_live()
        self._up = True
        lines = [("Open", page_url), ("Chat", f"{command()} chat")]
        if new_key:
            lines.append(("Key", new_key + ("" if temporary else f"  (kept in {data / 'api-key'})")))
        if ca is not None:
            lines.append(("CA", f"{ca}  (made just now: a browser will ask; curl --cacert)"))
        lines += [("Data", f"{data}{'  (temporary: gone at the end)' if temporary else ''}"), ("Stop", "Ctrl-C")]
        if self._console.is_terminal:
            table = Table.grid(padding=(0, 2))
            table.add_column(style="bold", min_width=6)
            table.add_column(overflow="fold")
            for name, text in lines:
                table.add_row(f"  {name}", Text(text, "cyan" if name == "Open" else ""))
            self._console.print()
            self._console.print(table)
            self._console.print()
        else:
            for name, text in lines[:-1]:
                self._console.print(Text(f"{name.lower()}: {text}"))
        if not self._json:
            self.line(f"ready: {url}")

    def line(self, text: str) -> None:
        """One line on stdout, if there is one."""
        if sys.stdout is None:
            return
        with suppress(OSError):
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    # -- stopping ----------------------------------------------------------------------------------------------------

    def stopping(self) -> None:
        self._end_live()
        self._stopping = True
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._console.print(Text("\nstopping: letting everybody finish; Ctrl-C again to kill", "dim"))
            self._draw(self._farewell, transient=True)
        else:
            self._console.print("stopping…")

    def stopped(self, killed: Sequence[str]) -> None:
        self._end_live()
        took = f"{time.monotonic() - self._began:.1f} s"
        if killed:
            self._console.print(Text.assemble(("killed: ", "yellow"), ", ".join(killed)))
        self._console.print(Text(f"stopped after {took}; nothing is left running", "dim"))

    def warn(self, message: str) -> None:
        self._console.print(Text(message, "yellow"))

    def _draw(self, what: Callable[[], RenderableType], *, transient: bool = False) -> None:
        self._live = Live(get_renderable=what, console=self._console, refresh_per_second=10, transient=transient)
        self._live.start()

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _progress(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for keeper in self._keepers:
            mark: RenderableType
            match keeper.state:
                case State.READY:
                    mark, note = Text("  ✓", "green"), Text(f"{keeper.took:.1f} s", "dim")
                case State.STARTING:
                    # One spinner for all would draw the same frame; each is drawn anew at the time of the refresh.
                    mark, note = _spin(), Text(keeper.waits_for or "starting", "yellow" if keeper.waits_for else "dim")
                case State.WAITING:
                    mark, note = Text("  ·", "dim"), Text("")
                case _:
                    mark, note = Text("  ✗", "red"), Text(keeper.last_end, "red")
            style = "dim" if keeper.state is State.WAITING else ""
            table.add_row(mark, Text(keeper.part.id, style), Text(WHAT[keeper.part.role], "dim"), note)
        return Group(Text(""), table)

    def _farewell(self) -> RenderableType:
        left = [keeper.part.id for keeper in self._keepers if keeper.state is not State.STOPPED]
        return Text.assemble(_spin(), " ", (", ".join(left), "dim"))


_SPINNER = Spinner("dots")


def _spin() -> Text:
    drawn = _SPINNER.render(time.monotonic())
    return Text.assemble("  ", drawn if isinstance(drawn, Text) else str(drawn))

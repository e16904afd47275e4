"""`okome chaos`: from flags to runs, their progress on the screen, and the report; written whatever happens."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from compose import folder
from compose.chaos import fleet, report
from compose.chaos.fleet import Plan, RunFailed
from compose.chaos.merge import merge as join
from compose.chaos.record import Line
from compose.chaos.run import Order
from compose.chaos.scenario import Scenario
from compose.chaos.scenarios import CATALOGUE
from compose.chaos.summary import Summary, summarize
from compose.cli import table
from compose.cli.outcome import FAILED, INTERRUPTED, OK, USAGE, CommandFailed
from compose.cli.progress import Progress

FAULTS = 60


def choose(names: Sequence[str]) -> list[Scenario]:
    """The scenarios of these names, all if there are none; a name may end in `*`. Raises CommandFailed (usage)."""
    if not names:
        return list(CATALOGUE.values())
    chosen: dict[str, Scenario] = {}
    for name in names:
        found = [one for one in CATALOGUE if one == name or (name.endswith("*") and one.startswith(name[:-1]))]
        if not found:
            raise CommandFailed(f"there is no scenario {name!r}; `okome chaos --list` names them", USAGE)
        chosen.update((one, CATALOGUE[one]) for one in found)
    return list(chosen.values())


def show_scenarios(*, as_json: bool) -> None:
    """Their names, worlds, bounds and sentences."""
    rows = [
        [one.name, one.world.name, f"{one.bound:g} s" if one.bound else "–", one.sentence] for one in CATALOGUE.values()
    ]
    if as_json:
        table.as_json([dict(zip(("name", "world", "bound", "sentence"), row, strict=True)) for row in rows])
    else:
        table.show(["SCENARIO", "WORLD", "P99 BOUND", "WHAT"], rows, empty="no scenarios")


def chaos(
    *,
    seed: int | None,
    scenarios: Sequence[str],
    faults: int | None,
    sessions: int,
    duration: float,
    targets: int,
    running: Sequence[Path],
    number: int,
    control: bool,
    directory: Path | None,
) -> int:
    """Run it; the exit code. Raises CommandFailed before anything was started."""
    chosen = choose(scenarios)
    _finite("--duration", duration)
    if number and len(chosen) != 1:
        raise CommandFailed("--round goes with one --scenario", USAGE)
    missing = [str(path) for path in running if not path.is_file()]
    if missing:
        raise CommandFailed(f"--target {', '.join(missing)}: no such ready file of a running `okome up`", USAGE)
    if running:
        _playable_there(chosen)
    drawn = seed if seed is not None else random.SystemRandom().randrange(1, 10**6)
    where = directory or Path(f"chaos-{drawn}")
    folder.make(where, "--report")
    if any(where.glob("*.jsonl")):
        raise CommandFailed(f"--report {where}: holds the records of another run already", USAGE)
    bound = 0 if duration and faults is None else (FAULTS if faults is None else faults)
    plan = Plan(
        seed=drawn,
        scenarios=chosen,
        faults=1 if number else len(chosen) if control and faults is None else bound,
        sessions=sessions,
        duration=duration,
        targets=targets,
        running=tuple(str(path.resolve()) for path in running),
        number=number,
        control=control,
    )
    return asyncio.run(_run(plan, where))


def _finite(option: str, value: float) -> None:
    """Raises CommandFailed for what is no span of time."""
    if not math.isfinite(value):
        raise CommandFailed(f"{option} {value:g}: it has to end", USAGE)


def _playable_there(chosen: Sequence[Scenario]) -> None:
    """Raises CommandFailed where not one of these can be played on a system that runs already."""
    reasons = {one.name: one.needs_own for one in chosen}
    if all(reasons.values()):
        raise CommandFailed(
            "; ".join(f"--scenario {name} with --target: {why}" for name, why in reasons.items()), USAGE
        )


async def _run(plan: Plan, where: Path) -> int:
    orders = fleet.deal(plan, where)
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, enough.set)
    lines: list[Line] = []
    failure = ""
    with Progress(plan, orders) as progress:

        def heard(order: Order, line: Line) -> None:
            lines.append(line)
            progress.take(order, line)

        try:
            await fleet.play(orders, plan.targets, heard, enough)
        except RunFailed as error:
            failure = str(error)
        finally:
            # Before anything else can go wrong: what was seen is on paper.
            summary = publish(lines, where)
    print(report.text(summary))
    print(f"\nreport: {where / 'report.html'}")
    if failure:
        raise CommandFailed(failure)
    if enough.is_set():
        return INTERRUPTED
    if not summary.scenarios and summary.left_out:
        nothing = "; ".join(f"{name} is left out: {why}" for name, why in summary.left_out.items())
        raise CommandFailed(f"nothing could be played: {nothing}", USAGE)
    return OK if summary.passed(control=plan.control) else FAILED


def publish(lines: Sequence[Line], where: Path) -> Summary:
    """Write report.json and report.html."""
    summary = summarize(lines, CATALOGUE.bounds, CATALOGUE.figures)
    report.write(summary, where, {one.name: one.sentence for one in CATALOGUE.values()})
    return summary


def merge(directories: Sequence[Path], where: Path) -> int:
    """Join earlier runs; the exit code says whether all that they show holds. Raises CommandFailed."""
    folder.make(where, "--report")
    try:
        summary = join(directories, where)
    except ValueError as error:
        raise CommandFailed(str(error), USAGE) from error
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}") from error
    print(report.text(summary))
    print(f"\nreport: {where / 'report.html'}")
    return OK if summary.passed(control=summary.control) else FAILED


async def exactness(cuts: int, seed: int, page: Path | None) -> None:
    """Measure takeovers of the real model; `page` is where the result is written. Raises CommandFailed."""
    if page is not None:
        folder.takes(page, "--write")
    from compose.chaos import exactness as measuring
    from compose.chaos.exactness_page import page as render
    from gpu_worker.engines import EngineFailed, EngineUnavailable

    try:
        measured = await measuring.measure(cuts, seed, lambda said: print(said, file=sys.stderr))
    except (EngineUnavailable, EngineFailed) as error:
        raise CommandFailed(str(error)) from error
    if page is not None:
        page.write_text(render(measured))
    print(f"{measured.exact} of {measured.cuts} takeovers go on as without one")


async def soak(minutes: float, seed: int, sessions: int, page: Path | None) -> None:
    """Churn for so long, and say what every process holds afterwards. Raises CommandFailed."""
    _finite("--minutes", minutes)
    if page is not None:
        folder.takes(page, "--write")
    from compose.chaos import soak as soaking
    from compose.chaos.soak_page import page as render
    from compose.chaos.whole import NotBack
    from compose.up.keeper import StartFailed

    try:
        soaked = await soaking.soak(minutes, seed, sessions, lambda said: print(said, file=sys.stderr))
    except (StartFailed, NotBack) as error:
        raise CommandFailed(str(error)) from error
    told = render(soaked)
    if page is not None:
        page.write_text(told)
    else:
        print(told)
    if not soaked.passed:
        raise CommandFailed("; ".join(soaked.amiss), INTERRUPTED if soaked.interrupted else FAILED)

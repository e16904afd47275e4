"""`okome bench`: measuring it. What a command does is imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from compose.cli.outcome import USAGE, CommandFailed, outcome

bench = typer.Typer(help="Measure it beside its peers, in the same run.", no_args_is_help=True)


@contextmanager
def _measuring() -> Iterator[None]:
    """What a measurement may end with, as a command says it."""
    from bench.cli import WrongUse
    from bench.contender import NotStarted

    try:
        yield
    except WrongUse as error:
        raise CommandFailed(str(error), USAGE) from error
    except (NotStarted, TimeoutError) as error:
        raise CommandFailed(str(error) or "it took too long") from error


@bench.command("relay")
def relay(
    report: Annotated[Path, typer.Option(help="Where the records go.")],
    shape: Annotated[
        list[str] | None, typer.Option(help="Streams x tokens a second, such as 1000x20; repeatable.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this contender; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Each contender so often, in turned order.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Measured in each run.")] = 15.0,
) -> None:
    """What a token costs on its way through this system, and through what people would pick instead."""
    with outcome():
        from bench import cli as run

        with _measuring():
            print(run.measure(shape or [], only or [], rounds, seconds, report))


@bench.command("first")
def first(
    report: Annotated[Path, typer.Option(help="Where the records go; those of `relay` may be there already.")],
    only: Annotated[list[str] | None, typer.Option(help="Only this contender; repeatable.")] = None,
    asks: Annotated[int, typer.Option(min=1, max=10_000, help="Answers in each run, one after another.")] = 150,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Each contender so often, in turned order.")] = 3,
) -> None:
    """How long a first token takes where nothing else runs."""
    with outcome():
        from bench import cli as run

        with _measuring():
            print(run.firsts(only or [], asks, rounds, report))


@bench.command("resume")
def resume(
    report: Annotated[Path, typer.Option(help="Where the records go; those of `relay` may be there already.")],
    shape: Annotated[str, typer.Option(help="Who watches meanwhile: streams x tokens a second.")] = "5000x2",
    contender: Annotated[str, typer.Option(help="Which of our own lines of `relay`.")] = "okome",
    resumes: Annotated[float, typer.Option(min=1, max=1000, help="Viewers a second who come back.")] = 50.0,
    history: Annotated[int, typer.Option(min=1000, max=1_000_000, help="Tokens of the long session.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="So often.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Of each of a round's three windows.")] = 15.0,
) -> None:
    """What coming back costs whoever does, and everybody else."""
    with outcome():
        from bench import cli as run

        with _measuring():
            print(run.resume(shape, contender, resumes, history, rounds, seconds, report))


@bench.command("page")
def page(
    records: Annotated[Path, typer.Argument(help="runs.jsonl of a measurement.")],
    write: Annotated[Path, typer.Option(help="The page that is written, such as docs/performance.md.")],
) -> None:
    """Write the page, with its plots beside it, from records."""
    with outcome():
        from bench import cli as run

        try:
            run.write(records, write, f"okome bench page {records} --write {write}")
        except (OSError, ValueError) as error:
            raise CommandFailed(str(error)) from error


@bench.command("fluidity")
def fluidity(
    write: Annotated[Path | None, typer.Option(help="The page that is written, such as docs/fluidity.md.")] = None,
) -> None:
    """How recorded answers read without a pacer, with ours and with smoothStream; it takes a second."""
    with outcome():
        from bench import cli as run

        try:
            text = run.fluidity("okome bench fluidity --write docs/fluidity.md")
            if write is None:
                print(text, end="")
            else:
                write.write_text(text)
        except (OSError, ValueError, run.PeerFailed) as error:
            raise CommandFailed(str(error)) from error


@bench.command("plan")
def plan(
    sessions: Annotated[int, typer.Option(min=1, max=10**9, help="Open streams.")] = 10_000_000,
    rate: Annotated[float, typer.Option(min=0.1, max=1000, help="Tokens a second of an answer.")] = 20.0,
    active: Annotated[float, typer.Option(min=0.001, max=1, help="Share of the streams with an answer.")] = 0.1,
    cores: Annotated[int, typer.Option(min=1, max=256, help="Of each machine.")] = 16,
    replicas: Annotated[int, typer.Option(min=1, max=5, help="NATS servers that store a frame.")] = 3,
    streams: Annotated[int, typer.Option(min=1, help="That one process may hold.")] = 5000,
    storm: Annotated[float, typer.Option(min=0, max=1, help="Share of the viewers that come back at once …")] = 0.1,
    within: Annotated[float, typer.Option(min=0.1, max=600, help="… within so many seconds.")] = 1.0,
    records: Annotated[Path, typer.Option(help="What was measured.")] = Path("docs/performance/runs.jsonl"),
    contender: Annotated[str, typer.Option(help="Whose figures of them.")] = "okome, synced every 1s",
    write: Annotated[Path | None, typer.Option(help="The page that is written, such as docs/capacity.md.")] = None,
) -> None:
    """How many machines a load needs, by what was measured, and what happens there when one of them dies."""
    with outcome():
        from bench import cli as run
        from bench.capacity import Demand

        demand = Demand(sessions, rate, active, cores, replicas, streams)
        try:
            text = run.plan(records, demand, contender, storm, within, " ".join(["okome", *sys.argv[1:]]))
            if write is None:
                print(text, end="")
            else:
                write.write_text(text)
        except (OSError, ValueError) as error:
            raise CommandFailed(str(error)) from error

"""The command `okome`: what can be asked of it.

What a command does is imported when it is called, so that help and usage errors are quick.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from compose.cli.bench import bench
from compose.cli.outcome import CANNOT_START, FAILED, OK, USAGE, CommandFailed, outcome

app = typer.Typer(
    name="okome",
    help="Durable token streams from language models to browsers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys = typer.Typer(help="API keys of programs.", no_args_is_help=True)
drain = typer.Typer(help="Let a node or worker finish and end; `okome up` then starts it anew.", no_args_is_help=True)
chaos = typer.Typer(help="Break it on purpose, and prove that nobody lost a token.", invoke_without_command=True)
app.add_typer(keys, name="keys")
app.add_typer(bench, name="bench")
app.add_typer(chaos, name="chaos")
app.add_typer(drain, name="drain")


def _version(asked: bool) -> None:
    if asked:
        from broker.bus.version import VERSION

        typer.echo(f"okome {VERSION}")
        raise typer.Exit(OK)


@app.callback()
def okome(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Durable token streams from language models to browsers."""


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


class Role(StrEnum):
    INGRESS = "ingress"
    NODE = "node"
    WORKER = "worker"
    CONTROL = "control"


Url = Annotated[
    str | None, typer.Option("--url", help="The system's address; else OKOME_URL, else the one started last.")
]
System = Annotated[
    str | None,
    typer.Option(
        "--url", help="Which system of this machine, by its address; it is asked at its NATS. Else OKOME_NATS_URL says."
    ),
]
Output = Annotated[Format, typer.Option("--output", "-o", help="text or json.")]


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Ingress port; 0 is any free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Ingress address.")] = "127.0.0.1",
    nodes: Annotated[int, typer.Option(help="Stream nodes.")] = 2,
    workers: Annotated[int, typer.Option(help="Workers, each with an engine of its own.")] = 1,
    ingresses: Annotated[int, typer.Option(help="Ingresses; they share the port.")] = 1,
    controls: Annotated[int, typer.Option(help="Replicas of OKOME.")] = 1,
    nats: Annotated[int, typer.Option(help="NATS servers: 1, or 3 for a cluster with 3 copies of everything.")] = 1,
    nats_url: Annotated[str, typer.Option(help="Use running NATS servers.")] = "",
    redis_url: Annotated[str, typer.Option(help="Use a running Redis or Valkey.")] = "",
    engine: Annotated[str, typer.Option(help="smollm2, scripted or openai (any server that speaks it).")] = "smollm2",
    data: Annotated[Path | None, typer.Option(help="Where state lives; starting again resumes it.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="HTTPS with a throw-away CA.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="HTTPS with this certificate chain (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="And its private key (PEM).")] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="Allowed cross origin; repeatable.")] = None,
    no_restart: Annotated[bool, typer.Option("--no-restart", help="Leave dead roles dead.")] = False,
    ready_file: Annotated[Path | None, typer.Option(help="Write what runs here, as JSON, once it is ready.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The same on stdout, one line each time.")] = False,
    api_key_file: Annotated[
        Path | None, typer.Option(help="The API key; else OKOME_API_KEY, else one is made.")
    ] = None,
) -> None:
    """Start the whole system on this machine, and keep it running until Ctrl-C."""
    import os

    with outcome():
        from broker.bus.lifecycle import configure_logging, loop_factory
        from compose.up.datadir import KeyInvalid, checked_key
        from compose.up.options import Options, OptionsInvalid
        from compose.up.system import up as run

        try:
            key = os.environ.get("OKOME_API_KEY", "")
            if api_key_file:  # an empty one is no key, and not none: another would be made
                key = checked_key(api_key_file.read_text(errors="replace"), f"--api-key-file {api_key_file}")
        except OSError as error:
            raise CommandFailed(f"--api-key-file: {error}", CANNOT_START) from error
        except KeyInvalid as error:
            raise CommandFailed(str(error), CANNOT_START) from error
        try:
            options = Options(
                host=host,
                port=port,
                nodes=nodes,
                workers=workers,
                ingresses=ingresses,
                controls=controls,
                nats=nats,
                nats_url=nats_url,
                redis_url=redis_url,
                engine=engine,
                data=data,
                tls=tls,
                tls_cert=tls_cert,
                tls_key=tls_key,
                cors_origins=tuple(cors_origin or ()),
                restart=not no_restart,
                ready_file=ready_file,
                json=json,
                api_key=key,
            )
        except OptionsInvalid as error:
            raise CommandFailed(str(error), USAGE) from error
        configure_logging("error")  # unconfigured, it says everything, and on stdout
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            code = runner.run(run(options))
        raise typer.Exit(code)


@app.command()
def chat(
    once: Annotated[
        str | None, typer.Option("--once", metavar="PROMPT", help="One prompt, its answer, and out.")
    ] = None,
    model: Annotated[str, typer.Option(help="Which model; else the system's own choice.")] = "",
    sid: Annotated[str, typer.Option(help="Go on with this session.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="End the answer after so many tokens.")] = None,
    url: Url = None,
    output: Output = Format.TEXT,
) -> None:
    """Talk to a model. Ctrl-C stops an answer, Ctrl-D leaves."""
    with outcome():
        from compose.cli.chat import chat as run
        from compose.cli.target import Target

        if output is Format.JSON and once is None:
            raise CommandFailed("-o json goes with --once", USAGE)
        as_json = output is Format.JSON
        raise typer.Exit(run(Target.find(url), once=once, model=model, sid=sid, max_tokens=max_tokens, as_json=as_json))


@app.command()
def tail(
    sid: Annotated[str, typer.Argument(help="The session.")],
    after: Annotated[
        str, typer.Option(help="Resume after this cursor; 0 is the beginning, now is only what comes.")
    ] = "",
    until_done: Annotated[bool, typer.Option("--until-done", help="End with the running answer.")] = False,
    url: Url = None,
    output: Output = Format.TEXT,
) -> None:
    """Follow a session's stream, over any number of connections."""
    with outcome():
        from compose.cli.tail import tail as run
        from compose.cli.target import Target

        asyncio.run(run(Target.find(url), sid, after=after, until_done=until_done, as_json=output is Format.JSON))


@app.command()
def role(name: Annotated[Role, typer.Argument(help="Which one.", show_choices=True)]) -> None:
    """Run one role here, told everything by OKOME_<ROLE>_<NAME>: for containers."""
    from compose.cli.role import run

    raise typer.Exit(run(name.value))


@app.command()
def doctor(url: Url = None, output: Output = Format.TEXT) -> None:
    """Check this machine, the running system, and the settings that a role would have from here."""
    with outcome():
        from compose.cli import table
        from compose.cli.doctor import examine
        from compose.cli.target import Target

        report = examine(Target.find(url))
        if output is Format.JSON:
            table.as_json(
                {
                    "checks": [finding._asdict() for finding in report.findings],
                    "settings": [setting._asdict() for setting in report.settings],
                    "mistakes": report.mistakes,
                }
            )
        else:
            from compose.cli.diagnosis import show

            show(report)
        raise typer.Exit(OK if report.well else USAGE if report.mistakes else FAILED)


@app.command()
def models(url: Url = None, output: Output = Format.TEXT) -> None:
    """The models that can be asked."""
    with outcome():
        from compose.cli import operate
        from compose.cli.target import Target

        asyncio.run(operate.models(Target.find(url), as_json=output is Format.JSON))


@app.command()
def route(
    model: Annotated[str, typer.Argument(help="The model.")],
    explain: Annotated[bool, typer.Option("--explain", help="And why.")] = False,
    sid: Annotated[str, typer.Option(help="In this session.")] = "",
    url: System = None,
    output: Output = Format.TEXT,
) -> None:
    """Where a generation of a model would go."""
    with outcome():
        from compose.cli import operate
        from compose.cli.target import Target

        as_json = output is Format.JSON
        asyncio.run(operate.route(Target.find(url), model, sid, explain=explain, as_json=as_json))


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    tenant: Annotated[str, typer.Option(help="Whose sessions it opens.")] = "default",
    url: System = None,
    output: Output = Format.TEXT,
) -> None:
    """Make an API key. It is shown this once."""
    with outcome():
        from compose.cli import operate
        from compose.cli.target import Target

        asyncio.run(operate.create_key(Target.find(url), name, tenant, as_json=output is Format.JSON))


@keys.command("ls")
def keys_list(url: System = None, output: Output = Format.TEXT) -> None:
    """List API keys, never the keys themselves."""
    with outcome():
        from compose.cli import operate
        from compose.cli.target import Target

        asyncio.run(operate.list_keys(Target.find(url), as_json=output is Format.JSON))


@keys.command("revoke")
def keys_revoke(key: Annotated[str, typer.Argument(metavar="ID", help="Its id.")], url: System = None) -> None:
    """Revoke an API key: what it opened ends within a second."""
    with outcome():
        from compose.cli import operate
        from compose.cli.target import Target

        asyncio.run(operate.revoke_key(Target.find(url), key))


@drain.command("node")
def drain_node(name: Annotated[str, typer.Argument(metavar="ID")], url: System = None) -> None:
    """Its viewers move to another node, without a loss."""
    with outcome():
        from compose.cli import operate
        from compose.cli.target import Target

        asyncio.run(operate.drain_node(Target.find(url), name))


@drain.command("worker")
def drain_worker(name: Annotated[str, typer.Argument(metavar="ID")], url: System = None) -> None:
    """It takes no more jobs and finishes those it has."""
    with outcome():
        from compose.cli import operate
        from compose.cli.target import Target

        asyncio.run(operate.drain_worker(Target.find(url), name))


@chaos.callback()
def chaos_run(
    context: typer.Context,
    seed: Annotated[int | None, typer.Option(help="The same seed plays the same run; else one is drawn.")] = None,
    faults: Annotated[int | None, typer.Option(min=1, help="End after so many faults, and every scenario.")] = None,
    sessions: Annotated[int, typer.Option(min=1, max=1000, help="Answers that run while a fault strikes.")] = 8,
    duration: Annotated[float, typer.Option(min=0, help="Begin no new round after so many seconds.")] = 0,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Only this one; repeatable; `node-*` is all of a kind.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where records and report go; else chaos-<seed>.")] = None,
    targets: Annotated[int, typer.Option(min=1, max=32, help="Systems that are hurt at the same time.")] = 3,
    target: Annotated[
        list[Path] | None, typer.Option(help="Hurt a running `okome up`, known by its ready file; repeatable.")
    ] = None,
    round_number: Annotated[int, typer.Option("--round", min=0, help="Play this round of one scenario again.")] = 0,
    control: Annotated[
        bool, typer.Option("--control", help="Strike wrong targets: every fault must be found not to have happened.")
    ] = False,
    list_scenarios: Annotated[bool, typer.Option("--list", help="The scenarios, and out.")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Start systems, hurt them under load, check every viewer's transcript to the byte, and write a report."""
    if context.invoked_subcommand is not None:
        return
    with outcome():
        from compose.cli import chaos as run

        if list_scenarios:
            run.show_scenarios(as_json=output is Format.JSON)
            return
        raise typer.Exit(
            run.chaos(
                seed=seed,
                scenarios=scenario or [],
                faults=faults,
                sessions=sessions,
                duration=duration,
                targets=targets,
                running=target or [],
                number=round_number,
                control=control,
                directory=report,
            )
        )


@chaos.command("merge")
def chaos_merge(
    runs: Annotated[list[Path], typer.Argument(help="Directories of earlier runs.")],
    report: Annotated[Path, typer.Option(help="Where the joined records and report go.")],
) -> None:
    """Join several runs into one report."""
    with outcome():
        from compose.cli import chaos as run

        raise typer.Exit(run.merge(runs, report))


@chaos.command("exactness")
def chaos_exactness(
    cuts: Annotated[int, typer.Option(min=1, max=10_000, help="Takeovers that are measured.")] = 300,
    seed: Annotated[int, typer.Option(help="Draws the same cuts again.")] = 1,
    write: Annotated[Path | None, typer.Option(help="The page that is written, such as docs/takeover.md.")] = None,
) -> None:
    """How often a takeover of the real model goes on as if there had been none."""
    with outcome():
        from compose.cli import chaos as run

        asyncio.run(run.exactness(cuts, seed, write))


@chaos.command("soak")
def chaos_soak(
    minutes: Annotated[float, typer.Option(min=1, help="How long; half an hour tells most, less than 6 nothing.")] = 30,
    seed: Annotated[int, typer.Option(help="Draws the same churn again.")] = 1,
    sessions: Annotated[int, typer.Option(min=1, max=1000, help="Sessions that live at the same time.")] = 12,
    write: Annotated[Path | None, typer.Option(help="The page that is written, such as docs/soak.md.")] = None,
) -> None:
    """Churn for a while, and tell what every process holds more of afterwards."""
    with outcome():
        from compose.cli import chaos as run

        asyncio.run(run.soak(minutes, seed, sessions, write))


def _announce(name: str, what: str) -> None:
    """A command that has its place but no body yet: not in the list, and who asks for it is told so."""

    @app.command(
        name,
        help=f"{what} Not built yet.",
        hidden=True,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def announced() -> None:
        with outcome():
            raise CommandFailed(f"{name} is not built yet")


_announce("top", "The system at a glance.")
_announce("drafts", "Provisional tokens.")

if __name__ == "__main__":
    app()

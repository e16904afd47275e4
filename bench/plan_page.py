"""docs/capacity.md, from the records of what was measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from bench.capacity import BUSY, SHOWN, STORED, Fit, Plan
from bench.fleet import SPREAD, Fleet, Found, Waits
from bench.markdown import table

_HEAD = """\
# How much of everything a load needs

Written by `{command}`, from the records of [performance.md](performance.md).

## The model

What a role uses is taken to be linear in the tokens that viewers get, in the streams in an answer and in the open
streams, and every process has a base: what it does although nothing happens. Fitted to the measured shapes
({contender}), with each token at once also where a worker has so many that they would collect and cost less, and with
sessions in which nothing was asked; none of the four is below zero. A worker knows nothing of a session in which
nothing is asked."""

_ERRORS = """\
How far the model is from every point it was made of, model ÷ measured − 1. Where the machine was full, roles waited for
one another and coalesced tokens, which makes each token cheaper than a line can say; where it was idle, each token woke
everybody by itself. The median of these errors, without their signs, is {median:.0%}; the largest is {worst:.0%}.
{planned}"""

_PLAN = """\
## {sessions:,} sessions

{active:.0%} of them in an answer of {rate:g} tokens/s: {tokens:,.0f} tokens/s. A process uses at most {busy:.0%} of a
core, and there is one for each core of a machine of {cores}, all behind one port (`SO_REUSEPORT`). Every frame is
stored by {replicas} NATS servers, each of which is taken to spend what the single one measured here spends."""

_NETWORK = """\
A token is {stored} bytes on its way to the log and {shown} bytes on a viewer's wire. {partitions} partitions, each of
{frames:,.0f} frames/s. Memory is what so many streams need if all are active; each process has its base besides."""

_FLEET = """\
## If a machine dies, or everybody comes back

A simulation, event by event, of {machines} node machines with the product's own placement (`bench/fleet.py`): a viewer
who comes back costs node and ingress {attach:.2f} ms of CPU, as measured, and each process has {free:.0%} of its core
left for that. There are so many machines that the fullest holds no more than it may, also when another one has died."""


def page(
    plan: Plan,
    fits: Mapping[str, Fit],
    contender: str,
    fleet: Fleet | None,
    found: Found | None,
    storm: float,
    within: float,
    command: str,
) -> str:
    errors = sorted(abs(error) for fit in fits.values() for error in fit.errors.values())
    demand = plan.demand
    parts = [
        _HEAD.format(command=command, contender=contender),
        _coefficients(fits),
        _ERRORS.format(median=errors[len(errors) // 2], worst=errors[-1], planned=_at(demand.rate, fits)),
        _deviations(fits),
        _PLAN.format(
            sessions=demand.sessions,
            active=demand.active,
            rate=demand.rate,
            tokens=demand.tokens,
            busy=BUSY,
            cores=demand.cores,
            replicas=demand.replicas,
        ),
        _shares(plan),
        _NETWORK.format(stored=STORED, shown=SHOWN, partitions=plan.partitions, frames=plan.frames),
        *(f"**{warning}.**" for warning in plan.warnings),
    ]
    if fleet and found:
        parts.append(_FLEET.format(machines=fleet.machines, attach=1000 * fleet.attach, free=fleet.free))
        parts.append(_found(found, storm, within))
    return "\n\n".join(parts) + "\n"


def _coefficients(fits: Mapping[str, Fit]) -> str:
    rows = [["", "µs a token", "µs a second and stream in an answer", "… and open stream", "of a core, always"]]
    for role, fit in fits.items():
        rows.append([role, f"{fit.token:.1f}", f"{fit.active:.1f}", f"{fit.open:.1f}", f"{fit.base / 1e4:.1f} %"])
    return table(rows)


def _at(rate: float, fits: Mapping[str, Fit]) -> str:
    """How far the model is where it is used."""
    there = [error for fit in fits.values() for shape, error in fit.errors.items() if shape.rate == rate]
    if not there:
        return f"At {rate:g} tokens/s, which is planned for, nothing was measured."
    return (
        f"At {rate:g} tokens/s, which is planned for, they are from {min(there):+.0%} to {max(there):+.0%}, and their "
        f"median with signs is {median(there):+.0%}: below zero, more is needed there than is planned."
    )


def _deviations(fits: Mapping[str, Fit]) -> str:
    shapes = next(iter(fits.values())).errors
    rows = [["", *(shape.name for shape in shapes)]]
    rows += [[role, *(f"{fit.errors[shape]:+.0%}" for shape in shapes)] for role, fit in fits.items()]
    return table(rows)


def _shares(plan: Plan) -> str:
    heads = ["", "processes", "machines", "because of", "network of one", "memory of one"]
    rows = [
        [
            share.role,
            "–" if share.role == "nats" else f"{share.processes:,}",
            f"{share.machines:,}",
            share.bound,
            f"{8 * share.network / 1e9:.2f} Gbit/s",
            f"{share.memory / 2**30:.2f} GiB",
        ]
        for share in plan.shares
    ]
    return table([heads, *rows])


def _found(found: Found, storm: float, within: float) -> str:
    return table(
        [
            ["", ""],
            ["sessions of the fullest machine", f"{found.balance:.2f} × the mean"],
            ["… after its death, of the then fullest", f"{found.after:.2f} × the mean"],
            ["sessions that move although their machine lives", f"{found.moved:.2%}"],
            [f"the fullest machine dies, noticed within {1000 * SPREAD:.0f} ms", _waited(found.death)],
            [f"{storm:.0%} of all viewers come back within {within:g} s", _waited(found.storm)],
        ]
    )


def _waited(waits: Waits) -> str:
    return (
        f"{waits.viewers:,} viewers on {waits.machines} machines wait {waits.p50:.2f} s in the middle, "
        f"{waits.p99:.2f} s at the 99th of a hundred, {waits.longest:.2f} s at most"
    )

"""Operators' commands: models, routes, API keys, draining. They ask OKOME and NATS directly, except for the models."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from datetime import datetime

import msgspec

from broker.bus.credentials import key_id
from broker.bus.kv import Bucket
from broker.bus.lifecycle import configure_logging
from broker.bus.nats import Bus, Msg
from broker.bus.operations import CreateKey, Explain, RevokeKey, Route
from broker.bus.subjects import beat_subject, encode, node_subject, worker_subject
from compose.cli import table
from compose.cli.api import ask
from compose.cli.outcome import CommandFailed
from compose.cli.target import Target
from compose.up import firstkey
from compose.up.firstkey import Keys

BEAT_TIMEOUT = 2.0
CONNECT_TIMEOUT = 3.0


class NewKey(msgspec.Struct, frozen=True):
    """The answer to `key_create`: the only time that the key is seen."""

    key: str
    id: str
    tenant: str
    name: str


class Done(msgspec.Struct, frozen=True):
    """Whatever an operation answers that nobody needs to know more of."""


@contextlib.asynccontextmanager
async def connected(target: Target) -> AsyncIterator[Bus]:
    configure_logging("error")  # unconfigured, it says everything, and on stdout
    user, password = target.nats_user, target.nats_password
    bus = await Bus.connect(target.bus(), "okome-cli", user=user, password=password, timeout=CONNECT_TIMEOUT)
    try:
        yield bus
    finally:
        await bus.close()


async def models(target: Target, *, as_json: bool) -> None:
    async with target.client() as client:
        answer = await ask(client, "GET", "/v1/models")
    if as_json:
        table.as_json(answer)
        return
    found = answer.get("data", [])
    names = [name for name in ("id", "owned_by", "engine", "context_length") if any(name in one for one in found)]
    table.show(names, [[str(one.get(name, "")) for name in names] for one in found], empty="no worker offers a model")


async def route(target: Target, model: str, sid: str, *, explain: bool, as_json: bool) -> None:
    async with connected(target) as bus:
        found = await bus.ask("route", Explain(model=model, sid=sid), Route)
    if as_json:
        table.as_json(msgspec.to_builtins(found))
    elif not explain:
        table.pairs({"subject": found.subject, "worker": found.worker or "any"})
    else:
        table.pairs(
            {
                "model": found.model,
                "subject": found.subject,
                "worker": found.worker or "any",
                "reason": found.reason,
                "partition": found.partition or "chosen when the session is made",
                "waiting": str(found.waiting),
                "capacity": str(found.capacity),
                "workers": ", ".join(found.workers) or "none",
            }
        )


async def create_key(target: Target, name: str, tenant: str, *, as_json: bool) -> None:
    async with connected(target) as bus:
        made = await bus.ask("key_create", CreateKey(name=name, tenant=tenant), NewKey)
    if as_json:
        table.as_json(msgspec.to_builtins(made))
    else:
        table.pairs({"key": made.key, "id": made.id, "tenant": made.tenant, "name": made.name})


async def list_keys(target: Target, *, as_json: bool) -> None:
    async with connected(target) as bus:
        found = (await bus.ask("key_list", {}, Keys)).keys
    if as_json:
        table.as_json(msgspec.to_builtins(found))
        return
    rows = [
        [
            key.id,
            key.tenant,
            key.name,
            datetime.fromtimestamp(key.created_at / 1000).astimezone().isoformat("T", "seconds"),
        ]
        for key in sorted(found, key=lambda key: key.created_at)
    ]
    table.show(["ID", "TENANT", "NAME", "CREATED"], rows, empty="no API keys")


async def revoke_key(target: Target, key: str) -> None:
    async with connected(target) as bus:
        known = {one.id for one in (await bus.ask("key_list", {}, Keys)).keys}
        if key not in known:
            raise CommandFailed(f"there is no key {key}; `okome keys ls` lists them by id")
        await bus.ask("key_revoke", RevokeKey(id=key), Done)
    _say(f"{key} is revoked, and what it opened ends within a second")
    if known == {key}:
        _say("warning: that was the last API key; `okome keys create NAME` makes another")
    if target.api_key and key_id(target.api_key) == key:
        _say(f"warning: that was the key of this machine's own commands; {firstkey.lost(target.key_file)}")


async def drain_node(target: Target, node: str) -> None:
    _plain(node)
    async with connected(target) as bus:
        if await Bucket(bus, "nodes").get(node) is None:
            raise CommandFailed(f"no node {node} is running")
        await bus.publish(node_subject(node, "drain"), b"{}")
    _say(f"{node} drains; its viewers move to another node")


async def drain_worker(target: Target, worker: str) -> None:
    """A worker is known by its beat."""
    _plain(worker)
    async with connected(target) as bus:
        beaten = asyncio.Event()

        async def hear(_: Msg) -> None:
            beaten.set()

        await bus.subscribe(beat_subject(worker), hear)
        try:
            async with asyncio.timeout(BEAT_TIMEOUT):
                await beaten.wait()
        except TimeoutError:
            raise CommandFailed(f"no worker {worker} is running") from None
        await bus.publish(worker_subject(worker, "drain"), b"{}")
    _say(f"{worker} drains; what it cannot finish goes to another worker")


def _plain(name: str) -> None:
    """A name becomes part of a subject: `*` would ask about everybody and drain nobody."""
    if encode(name) != name:
        raise CommandFailed(f"{name!r} is no name of a node or worker; `okome doctor` lists them")


def _say(sentence: str) -> None:
    """To the person; what a program reads is on stdout."""
    sys.stderr.write(sentence + "\n")

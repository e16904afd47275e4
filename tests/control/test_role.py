"""The role as a process: it says what is wrong, serves, survives its NATS server, and ends when told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.bus import operations as ops
from broker.bus.errors import BusError, BusUnavailable, Refusal
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.records import Idempotency, encode
from control.app import Okome, main
from control.idempotency import fingerprint
from control.keyring import Keyring
from control.models import Models
from control.open_generations import OpenGenerations
from tests.control.okome import connected, new_session, replica, settings, until
from tests.fixtures.nats_server import NatsServer

UNANSWERED = 1.5  # seconds: the connection is let go, and another one is not given up yet


@contextlib.asynccontextmanager
async def process(**environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "control.role",
        env={**os.environ, **{f"OKOME_CONTROL_{name}": value for name, value in environment.items()}},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.wait()


async def test_all_wrong_settings_are_told_together() -> None:
    async with process(PARTITIONS="0", REPLICAS="many", JOB_WAIT="-1") as okome:
        async with asyncio.timeout(20):
            _, told = await okome.communicate()
        assert okome.returncode == 2
        for name in (b"OKOME_CONTROL_PARTITIONS", b"OKOME_CONTROL_REPLICAS", b"OKOME_CONTROL_JOB_WAIT"):
            assert name in told


async def test_without_nats_it_cannot_start_and_says_so() -> None:
    async with process(NATS_URL="nats://127.0.0.1:1") as okome:
        async with asyncio.timeout(40):
            _, told = await okome.communicate()
        assert okome.returncode == 3
        assert b"role.cannot_start" in told


STEPS = [(Okome, "_look_at_floors"), (Keyring, "open"), (OpenGenerations, "start"), (Models, "start"), (Bus, "serve")]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[0].__name__)
async def test_a_start_waits_for_a_server_that_does_not_answer_for_a_while(
    step: tuple[type[Any], str], fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than a question waits: a cluster that elects its leaders on a busy machine does it to any step."""
    does = getattr(*step)
    frozen = False

    async def do(*given: Any) -> Any:
        nonlocal frozen
        if not frozen:
            frozen = True
            fresh_nats.freeze()
            asyncio.get_running_loop().call_later(UNANSWERED, fresh_nats.thaw)
        return await does(*given)

    monkeypatch.setattr(*step, do)
    async with replica(fresh_nats.url), connected(fresh_nats.url) as bus:
        assert frozen
        await new_session(bus)


async def test_a_start_that_is_put_off_ends_when_it_is_told_to(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = asyncio.Event()
    asked = 0

    async def unanswered(_: Okome) -> None:
        nonlocal asked
        if (asked := asked + 1) == 2:
            stop.set()
        raise BusUnavailable("no leader")

    monkeypatch.setattr(Okome, "_look_at_floors", unanswered)
    async with asyncio.timeout(20):
        await main(settings(fresh_nats.url), stop)
    assert asked == 2


def read(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_it_serves_until_told_to_end_and_leaves_with_zero(fresh_nats: NatsServer) -> None:
    async with process(NATS_URL=fresh_nats.url, PARTITIONS="2") as okome, connected(fresh_nats.url) as bus:

        async def answers() -> bool:
            try:
                return bool(await bus.ask("ping", {}, dict, timeout=1))
            except BusError:
                return False

        await until(answers, "it answers", 20)
        await new_session(bus)
        okome.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            _, told = await okome.communicate()
        assert okome.returncode == 0, told.decode()
        assert b"control.stopping" in told
        assert b"eyJ" not in told  # no token in any log


async def test_live_ready_metrics_and_version_are_told_over_http(fresh_nats: NatsServer) -> None:
    async with replica(fresh_nats.url) as okome, connected(fresh_nats.url) as bus:
        await new_session(bus)
        seen = {
            path: await asyncio.to_thread(read, okome.port, path)
            for path in ("/livez", "/readyz", "/metrics", "/version", "/nothing")
        }
    assert [seen[path][0] for path in seen] == [200, 200, 200, 200, 404]
    assert 'okome_control_operation_seconds_count{operation="session_create",outcome="ok"}' in seen["/metrics"][1]
    assert okome.id in seen["/version"][1]


async def test_replicas_share_the_questions_and_show_as_one_micro_service(fresh_nats: NatsServer) -> None:
    async with replica(fresh_nats.url, id="one"), replica(fresh_nats.url, id="two"), connected(fresh_nats.url) as bus:
        told = await asyncio.gather(*(bus.ask("ping", {}, dict) for _ in range(60)))
        assert {each["id"] for each in told} == {"one", "two"}
        info = await bus.request("$SRV.INFO.okome")
        assert b'"okome.v1.generation_create"' in info.data


async def test_it_goes_on_when_its_nats_server_was_killed_and_came_back(fresh_nats: NatsServer) -> None:
    async with replica(fresh_nats.url) as okome, connected(fresh_nats.url) as bus:
        sid = await new_session(bus)
        fresh_nats.restart()

        async def token() -> bool:
            try:
                return bool(await bus.ask("session_token", ops.OfSession("acme", sid), ops.SessionToken, timeout=1))
            except (BusError, Refusal):
                return False

        await until(token, "it answers again", 15)
        await until(lambda: okome.health.ready, "it is ready again")
        await new_session(bus)


async def test_operations_do_not_block_one_another(fresh_nats: NatsServer) -> None:
    """A question that waits for the answer of a dead replica holds up nobody."""
    async with replica(fresh_nats.url), connected(fresh_nats.url) as bus:
        question = ops.CreateSession("acme", idempotency_key="k")
        await bus.ask("session_create", question, ops.SessionToken)
        (key,) = await Bucket(bus, "idempotency").all()
        unfinished = Idempotency(fingerprint(question), {}, "00reservedsession")
        await Bucket(bus, "idempotency").put(key, encode(unfinished))
        waiting = asyncio.create_task(bus.ask("session_create", question, ops.SessionToken, timeout=10))
        for _ in range(3):  # far sooner than its patience ends, however slow the disk
            await new_session(bus)
        assert not waiting.done()
        assert (await waiting).session_id == "00reservedsession"

"""Every role has a wall clock of its own, minutes off from all the others': nothing notices but times of day.

Nodes are 5 min ahead, workers 5 min behind, ingresses 3 min ahead, one OKOME replica is right and the other one 4 min
behind. Each question goes to either replica, so each is asked often enough to have met both.
"""

import asyncio
import base64
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil
import pytest

from broker.bus.frames import CANCELLED
from broker.bus.nats import Bus, Msg
from broker.bus.operations import CreateKey, RevokeKey
from broker.bus.retry import retry
from broker.bus.script import Script
from broker.bus.subjects import beat_subject
from compose.chaos.crowd import Crowd, NotAdmitted, Watched
from compose.chaos.http import call
from compose.chaos.viewer import Viewer, ViewerRefused
from tests.fixtures.system import System
from tests.path.crowd import DEADLINE, crowd_of, judge, told, watching

NODE, WORKER, INGRESS, LATE = 300, -300, 180, -240
JOB_WAIT = 60  # less than the two replicas differ: whoever counts by the other's clock finds everything too old
OFTEN = 10  # questions: that all of them meet the same replica happens twice in a thousand runs
ROOM = 100  # seconds that clocks which are meant to agree may seem to differ on a busy machine


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    offsets = {"NODE": NODE, "WORKER": WORKER, "INGRESS": INGRESS}
    env = {f"OKOME_{role}_CLOCK_OFFSET": str(offset) for role, offset in offsets.items()}
    directory = tmp_path_factory.mktemp("clocks")
    with System(directory, "--nodes", "2", OKOME_CONTROL_JOB_WAIT=str(JOB_WAIT), **env) as running:
        yield running


@pytest.fixture
async def bus(system: System) -> AsyncIterator[Bus]:
    bus = await Bus.connect(system.nats_url, "clocks")
    yield bus
    await bus.close()


@pytest.fixture(autouse=True)
async def late_replica(system: System, bus: Bus) -> AsyncIterator[None]:
    """A second OKOME, minutes behind the first one. It beats when it serves."""
    heard = asyncio.Event()

    async def hear(_: Msg) -> None:
        heard.set()

    subscription = await bus.subscribe(beat_subject("okome-late"), hear)
    told = {
        "ID": "late",
        "NATS_URL": system.nats_url,
        "API_KEY": system.api_key,
        "JOB_WAIT": str(JOB_WAIT),
        "CLOCK_OFFSET": str(LATE),
        "PARENT_PID": str(os.getpid()),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "compose.cli.role", "control"),
        env=os.environ | {f"OKOME_CONTROL_{name}": text for name, text in told.items()},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(DEADLINE):
            await heard.wait()
        yield
    finally:
        await bus.unsubscribe(subscription)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


def said_by(token: str) -> dict[str, Any]:
    """The claims of a token, as its signer wrote them."""
    body = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims


async def test_the_clocks_are_off(system: System) -> None:
    """The fault happened: each role says another time, and both replicas answer."""
    for name in ("node-1", "node-2"):
        answer = await call(system.find(name)["url"], "GET", "/readyz", "")
        assert abs(int(answer.headers["x-okome-clock"]) / 1000 - time.time() - NODE) < ROOM
    assert await asyncio.to_thread(environment_of, system, "ingress") == str(INGRESS)
    signed: set[int] = set()
    async with asyncio.timeout(DEADLINE), crowd_of(system) as crowd:
        while len(signed) < 2:
            behind = time.time() - said_by((await crowd.open()).token)["iat"]
            signed.add(next(offset for offset in (0, LATE) if abs(behind + offset) < ROOM))
    async with watching(system, sessions=1, tokens=20, rate=50) as (one,):
        pass
    start = json.loads(one.viewers[0].stored()[0].data)
    assert abs(start["t"] / 1000 - time.time() - WORKER) < ROOM


def greeted(viewer: Viewer) -> bool:
    """It is connected: the first `hello` has come."""
    return bool(viewer.events)


def environment_of(system: System, name: str) -> str:
    environment = psutil.Process(system.find(name)["pid"]).environ()
    return environment["OKOME_INGRESS_CLOCK_OFFSET"]


async def test_answers_are_exact_and_resume_at_every_place(system: System) -> None:
    async with watching(system, sessions=OFTEN, tokens=40, rate=100) as watched:
        pass
    for one in watched:
        stored = told(one.viewers[0])
        middle = len(stored) // 2
        again = Viewer(lambda: system.url, one.sid, one.token)
        again.cursor = stored[middle][1]
        async with asyncio.timeout(DEADLINE):
            await again.watch()
        assert told(again) == stored[middle + 1 :]


async def test_who_logs_in_is_logged_in(system: System) -> None:
    for _ in range(OFTEN):
        answer = await call(system.url, "POST", "/v1/login", "", {"api_key": system.api_key}, {"authorization": ""})
        assert answer.status == 200, answer.body
        cookie = answer.headers["set-cookie"].partition(";")[0]
        listed = await call(system.url, "GET", "/v1/sessions", "", headers={"authorization": "", "cookie": cookie})
        assert listed.status == 200, listed.body


async def test_a_ticket_opens_once_and_its_stream_survives_its_node(system: System) -> None:
    """The second leg rests on what the first node admitted and on the ingress's word, dated by the second node."""
    async with asyncio.timeout(DEADLINE), crowd_of(system) as crowd:
        watched = [await crowd.open() for _ in range(OFTEN)]
        for session in watched:
            path = f"/v1/sessions/{session.sid}/tickets"
            made = await call(system.url, "POST", path, session.token, {"scope": "read"})
            assert made.status == 201, made.body
            session.viewers.append(Viewer(lambda: system.url, session.sid, "", ticket=made.json()["ticket"]))
        viewers = crowd.viewers
        async with asyncio.TaskGroup() as tasks:
            for viewer in viewers:
                tasks.create_task(viewer.watch())
            await asyncio.gather(*(viewer.changed(greeted) for viewer in viewers))
            for seed, session in enumerate(watched, 1):
                await crowd.ask(session, Script(tokens=120, seed=seed, rate=20))
            await crowd.underway()
            killed = await asyncio.to_thread(system.kill, viewers[0].node)
        await judge(system, watched)
    assert all(viewer.connections == 1 for viewer in viewers), "a ticket opens nothing a second time: it was bridged"
    assert any(sum(event.name == "served_by" for event in viewer.events) > 1 for viewer in viewers)
    await asyncio.to_thread(system.wait_restarted, killed)


async def test_a_cancel_stops_what_runs(system: System) -> None:
    async with asyncio.timeout(DEADLINE), crowd_of(system) as crowd:
        for seed in range(3):
            session = await crowd.open()
            viewer = crowd.watch(session)
            asked = await crowd.ask(session, Script(tokens=100_000, rate=200, seed=seed))
            asked.ends = (CANCELLED,)
            await viewer.seen(3)
            await crowd.cancel(session, asked)
        assert await crowd.over(DEADLINE) == []
        await judge(system, crowd.watched)


async def once_known(crowd: Crowd) -> Watched:
    """A session of a key that was made a moment ago: on a busy machine a node may have yet to hear of it."""
    while True:
        try:
            return await crowd.open()
        except NotAdmitted as error:
            if "not known" not in str(error):
                raise
            await asyncio.sleep(0.05)


async def test_what_a_revoked_key_opened_ends_and_opens_no_more(system: System, bus: Bus) -> None:
    """Whichever replica signed and whichever one revokes: a token of the one that is ahead looks younger than it."""

    async def revoked(number: int) -> None:
        key = await retry(lambda: bus.ask("key_create", CreateKey(name=f"k{number}"), dict))
        async with crowd_of(system, key["key"]) as crowd:
            session = await once_known(crowd)
            viewer = crowd.watch(session)
            await viewer.changed(greeted)
            await retry(lambda: bus.ask("key_revoke", RevokeKey(id=key["id"]), dict))
            with pytest.raises(ViewerRefused, match="token_revoked"):  # it comes back as it was, and is refused
                await session.tasks[0]
        assert json.loads(viewer.events[-1].data)["code"] == "token_revoked"

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(revoked(number) for number in range(OFTEN)))


async def test_what_waits_for_a_worker_neither_expires_early_nor_is_forgotten(system: System) -> None:
    """The replica that sweeps counts in its own time, not from the moment at which another one's clock stood."""
    async with asyncio.timeout(DEADLINE), crowd_of(system) as crowd:
        watched = [await crowd.open() for _ in range(OFTEN)]
        await asyncio.gather(*(crowd.watch(session).changed(greeted) for session in watched))
        last = watched[-1]
        system.kill("worker", signal.SIGSTOP)
        try:
            for seed, session in enumerate(watched):
                asked = await crowd.ask(session, Script(tokens=20, seed=seed))
            asked.ends = (CANCELLED,)
            await crowd.cancel(last, asked)
            await last.tasks[0]  # the sweeper has looked at the last one, so it has looked at them all
        finally:
            system.kill("worker", signal.SIGCONT)
        assert await crowd.over(DEADLINE) == []
        await judge(system, watched)
    assert [event.name for event in last.viewers[0].stored()] == ["start", "cancelled"]


async def test_a_conversation_is_in_its_order_whichever_replicas_took_its_turns(system: System) -> None:
    async with asyncio.timeout(DEADLINE), crowd_of(system) as crowd:
        session = await crowd.open()
        viewer = crowd.watch(session, terminals=OFTEN)
        for seed in range(1, OFTEN + 1):
            await crowd.ask(session, Script(tokens=2, seed=seed, rate=0))
            await viewer.changed(lambda one, turns=seed: one.ended == turns)  # type: ignore[misc]
        await judge(system, [session])
        fresh = crowd.watch(session, after="")
        await fresh.changed(lambda one: "caught_up" in one.names())
    messages = await call(system.url, "GET", f"/v1/sessions/{session.sid}/messages", session.token)
    said = [one["content"] for one in messages.json()["messages"] if one["role"] == "assistant"]
    assert said == [f"{seed}.0 {seed}.1 " for seed in range(1, OFTEN + 1)]

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

from broker.bus.nats import Bus, Msg
from broker.bus.operations import CreateKey, RevokeKey
from broker.bus.subjects import beat_subject
from tests.fixtures.system import System
from tests.path.crowd import DEADLINE, Watched, start, watching
from tests.path.viewer import Viewer, call, check_transcript

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


async def new_session(system: System, key: str = "") -> dict[str, Any]:
    created = await call(system.url, "POST", "/v1/sessions", key or system.api_key, {"model": "scripted"})
    assert created.status == 201, created.body
    session: dict[str, Any] = created.json()
    return session


async def ask(system: System, session: dict[str, Any], **script: Any) -> str:
    """A generation in it, by the session's token; its id."""
    path = f"/v1/sessions/{session['session_id']}/generations"
    accepted = await call(system.url, "POST", path, session["token"], {"prompt": json.dumps(script)})
    assert accepted.status == 202, accepted.body
    return str(accepted.json()["generation_id"])


async def test_the_clocks_are_off(system: System) -> None:
    """The fault happened: each role says another time, and both replicas answer."""
    for name in ("node-1", "node-2"):
        answer = await call(system.find(name)["url"], "GET", "/readyz", "")
        assert abs(int(answer.headers["x-okome-clock"]) / 1000 - time.time() - NODE) < ROOM
    assert await asyncio.to_thread(environment_of, system, "ingress") == str(INGRESS)
    signed: set[int] = set()
    async with asyncio.timeout(DEADLINE):
        while len(signed) < 2:
            behind = time.time() - said_by((await new_session(system))["token"])["iat"]
            signed.add(next(offset for offset in (0, LATE) if abs(behind + offset) < ROOM))
    async with watching(system, sessions=1, tokens=20, rate=50) as (one,):
        pass
    start = json.loads(one.viewer.stored()[0].data)
    assert abs(start["t"] / 1000 - time.time() - WORKER) < ROOM


def environment_of(system: System, name: str) -> str:
    environment = psutil.Process(system.find(name)["pid"]).environ()
    return environment["OKOME_INGRESS_CLOCK_OFFSET"]


async def test_answers_are_exact_and_resume_at_every_place(system: System) -> None:
    async with watching(system, sessions=OFTEN, tokens=40, rate=100) as watched:
        pass
    for one in watched:
        stored = one.viewer.stored()
        again = Viewer(system.url, one.viewer.sid, one.viewer._token)
        again.cursor = stored[len(stored) // 2].id
        async with asyncio.timeout(DEADLINE):
            await again.watch()
        assert again.stored() == stored[len(stored) // 2 + 1 :]


async def test_who_logs_in_is_logged_in(system: System) -> None:
    for _ in range(OFTEN):
        answer = await call(system.url, "POST", "/v1/login", "", {"api_key": system.api_key}, {"authorization": ""})
        assert answer.status == 200, answer.body
        cookie = answer.headers["set-cookie"].partition(";")[0]
        listed = await call(system.url, "GET", "/v1/sessions", "", headers={"authorization": "", "cookie": cookie})
        assert listed.status == 200, listed.body


async def test_a_ticket_opens_once_and_its_stream_survives_its_node(system: System) -> None:
    """The second leg rests on what the first node admitted and on the ingress's word, dated by the second node."""
    sessions = [await new_session(system) for _ in range(OFTEN)]
    watched = []
    for seed, session in enumerate(sessions, 1):
        path = f"/v1/sessions/{session['session_id']}/tickets"
        made = await call(system.url, "POST", path, session["token"], {"scope": "read"})
        assert made.status == 201, made.body
        viewer = Viewer(system.url, session["session_id"], "", ticket=made.json()["ticket"])
        watched.append(Watched(viewer, seed, 120))
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        for one in watched:
            tasks.create_task(one.viewer.watch())
        await asyncio.gather(*(one.viewer.connected.wait() for one in watched))
        for one, session in zip(watched, sessions, strict=True):
            await ask(system, session, tokens=one.tokens, seed=one.seed, rate=20)
        await asyncio.gather(*(one.viewer.seen(5) for one in watched))
        serving = {json.loads(one.viewer.events[0].data)["node"] for one in watched}
        killed = await asyncio.to_thread(system.kill, sorted(serving)[0])
    for one in watched:
        check_transcript(one.viewer.stored(), seed=one.seed, tokens=one.tokens)
        assert one.viewer.connections == 1, "a ticket opens nothing a second time: the ingress bridged it"
    assert any(sum(event.name == "served_by" for event in one.viewer.events) > 1 for one in watched)
    await asyncio.to_thread(system.wait_restarted, killed)


async def test_a_cancel_stops_what_runs(system: System) -> None:
    for seed in range(3):
        one = await start(system, seed, 100_000, 200)
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
            tasks.create_task(one.viewer.watch())
            await one.viewer.seen(5)
            gid = json.loads(one.viewer.stored()[0].data)["generation_id"]
            path = f"/v1/sessions/{one.viewer.sid}/generations/{gid}/cancel"
            assert (await call(system.url, "POST", path, one.viewer._token)).status == 202
        assert one.viewer.stored()[-1].name == "cancelled"


async def test_what_a_revoked_key_opened_ends_and_opens_no_more(system: System, bus: Bus) -> None:
    """Whichever replica signed and whichever one revokes: a token of the one that is ahead looks younger than it."""
    for number in range(OFTEN):
        key = await bus.ask("key_create", CreateKey(name=f"k{number}"), dict)
        session = await new_session(system, key["key"])
        viewer = Viewer(system.url, session["session_id"], session["token"])
        watching = asyncio.create_task(viewer.watch())
        try:
            async with asyncio.timeout(DEADLINE):
                await viewer.connected.wait()
            await bus.ask("key_revoke", RevokeKey(id=key["id"]), dict)
            with pytest.raises(AssertionError, match="token_revoked"):  # it comes back as it was, and is refused
                await asyncio.wait_for(watching, 5)
        finally:
            watching.cancel()
        assert json.loads(viewer.events[-1].data)["code"] == "token_revoked"


async def test_what_waits_for_a_worker_neither_expires_early_nor_is_forgotten(system: System) -> None:
    """The replica that sweeps counts in its own time, not from the moment at which another one's clock stood."""
    sessions = [await new_session(system) for _ in range(OFTEN)]
    viewers = [Viewer(system.url, session["session_id"], session["token"]) for session in sessions]
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        watches = [tasks.create_task(viewer.watch()) for viewer in viewers]
        await asyncio.gather(*(viewer.connected.wait() for viewer in viewers))
        system.kill("worker", signal.SIGSTOP)
        try:
            gids = [await ask(system, session, tokens=20, seed=seed) for seed, session in enumerate(sessions)]
            path = f"/v1/sessions/{viewers[-1].sid}/generations/{gids[-1]}/cancel"
            assert (await call(system.url, "POST", path, sessions[-1]["token"])).status == 202
            await watches[-1]  # the sweeper has looked at the last one, so it has looked at them all
        finally:
            system.kill("worker", signal.SIGCONT)
    assert [event.name for event in viewers[-1].stored()] == ["start", "cancelled"]
    for seed, viewer in enumerate(viewers[:-1]):
        check_transcript(viewer.stored(), seed=seed, tokens=20)


async def test_a_conversation_is_in_its_order_whichever_replicas_took_its_turns(system: System) -> None:
    session = await new_session(system)
    for seed in range(1, OFTEN + 1):
        await ask(system, session, tokens=2, seed=seed, rate=0)
        viewer = Viewer(system.url, session["session_id"], session["token"])
        async with asyncio.timeout(DEADLINE):
            await viewer.watch(seed)
    fresh = Viewer(system.url, session["session_id"], session["token"], after="")
    watching = asyncio.create_task(fresh.watch())
    try:
        async with asyncio.timeout(DEADLINE):
            while "caught_up" not in fresh.names():
                fresh._changed.clear()
                await fresh._changed.wait()
    finally:
        watching.cancel()
    told = await call(system.url, "GET", f"/v1/sessions/{session['session_id']}/messages", session["token"])
    said = [one["content"] for one in told.json()["messages"] if one["role"] == "assistant"]
    assert said == [f"{seed}.0 {seed}.1 " for seed in range(1, OFTEN + 1)]

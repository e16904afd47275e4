"""The bundled real model, through every plane: readable, streamed, and the same on reload."""

import asyncio
import itertools
import json
from collections.abc import Iterator

import pytest

from compose.chaos.http import call
from compose.chaos.viewer import Viewer
from tests.fixtures.system import System

DEADLINE = 60.0


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("model"), "--engine", "smollm2", "--nodes", "1") as running:
        yield running


async def asked(system: System, sid: str, prompt: str, **more: object) -> None:
    body = {"prompt": prompt, "max_tokens": 48, "temperature": 0, **more}
    accepted = await call(system.url, "POST", f"/v1/sessions/{sid}/generations", system.api_key, body)
    assert accepted.status == 202, accepted.body


def text_of(viewer: Viewer) -> str:
    return "".join(json.loads(event.data)["text"] for event in viewer.stored() if event.name == "token")


async def test_a_plain_question_is_answered_in_readable_text_and_more_than_one_event(system: System) -> None:
    created = await call(system.url, "POST", "/v1/sessions", system.api_key, {"model": "smollm2"})
    sid = created.json()["session_id"]
    viewer = Viewer(lambda: system.url, sid, system.api_key)
    async with asyncio.timeout(DEADLINE):
        await asked(system, sid, "What is the capital of France?")
        await viewer.watch()
    tokens = [event for event in viewer.stored() if event.name == "token"]
    assert len(tokens) > 1
    assert "Paris" in text_of(viewer)
    assert viewer.stored()[-1].name == "done"


async def test_the_next_turn_knows_what_was_said_before(system: System) -> None:
    created = await call(system.url, "POST", "/v1/sessions", system.api_key, {"model": "smollm2"})
    sid = created.json()["session_id"]
    viewer = Viewer(lambda: system.url, sid, system.api_key)
    async with asyncio.timeout(DEADLINE):
        await asked(system, sid, "My name is Aiko. Say hello to me by my name.")
        await viewer.watch(1)
        await asked(system, sid, "What is my name?")
        await viewer.watch(2)
    assert "Aiko" in text_of(viewer)
    usage = [json.loads(event.data) for event in viewer.stored() if event.name == "usage"]
    assert usage[1]["prompt_tokens"] > usage[0]["prompt_tokens"], "the second prompt holds the first turn"


async def test_an_engine_child_killed_mid_answer_costs_an_epoch(system: System) -> None:
    created = await call(system.url, "POST", "/v1/sessions", system.api_key, {"model": "smollm2"})
    sid = created.json()["session_id"]
    viewer = Viewer(lambda: system.url, sid, system.api_key)
    async with asyncio.timeout(DEADLINE):
        await asked(system, sid, "Write a long story about a lighthouse keeper and the sea.", max_tokens=120)
        watch = asyncio.create_task(viewer.watch())
        await viewer.seen(10)
        await asyncio.to_thread(system.kill, "engine")
        await watch
    names = [event.name for event in viewer.stored()]
    assert "attempt" in names
    assert names[-1] == "done"
    told = [json.loads(event.data) for event in viewer.stored() if event.name == "token"]
    # Those that came while one before them was being stored are one event.
    before = [0, *itertools.accumulate(data["n"] for data in told)]
    assert [data["offset"] for data in told] == before[:-1], "no token twice, none missing"

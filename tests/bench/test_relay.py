"""A measurement, small: the real processes, every token checked, and whoever is not here named."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from bench import first, peers, record, relay, resume
from bench.child import child
from bench.contender import Contender, NotStarted, Running, mock_engine, process
from bench.load import Order
from bench.ours import Okome
from bench.peers import Direct
from bench.record import Failed, First, Loaded, Missing, Resumed, Run, Shape

DEADLINE = 60.0
TIMING = relay.Timing(ramp=0.2, warm=0.2, window=2.0)


@dataclass(frozen=True)
class Absent:
    name: str = "absent"
    version: str = ""
    missing: str = "make it"

    def start(self, engine: str, directory: Path) -> AbstractAsyncContextManager[Running]:
        raise AssertionError("it is not here")


async def test_every_token_of_the_durable_path_is_seen_once_and_paid_for(tmp_path: Path) -> None:
    """Beside the engine alone: the same load, nothing out of order or lost, and every role of the path has used CPU."""
    file = tmp_path / "runs.jsonl"
    contenders: list[Contender] = [Direct(), Okome(websocket=True, synced="1s"), Absent()]
    async with asyncio.timeout(DEADLINE):
        await relay.measure(contenders, [Shape(10, 50.0, viewers=2)], 1, TIMING, file, lambda line: None)
    missing, direct, *ours = record.read(file)
    assert missing == Missing("absent", "make it")
    for run in (direct, *ours):
        assert isinstance(run, Run)
        assert (run.loaded.wrong, run.loaded.lost) == (0, 0)
        assert run.loaded.tokens > 500, "two seconds of 10 × 50/s, twice; a machine may stand still"
        assert run.loaded.latency.count == run.loaded.tokens
        assert run.loaded.ttft.count == 20
    names = []
    for run in ours:
        assert isinstance(run, Run)
        names.append(run.contender)
        assert all(run.processes[f"{role}-1"].cpu > 0 for role in ("worker", "nats", "node", "ingress"))
    assert {run.commit for run in record.runs([direct, *ours])} == {relay.commit()}
    assert names == ["okome over WebSocket, synced every 1s"]


async def test_a_contender_that_refuses_is_named_with_its_words_and_the_others_go_on(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Wrong(Absent):
        name: str = "wrong"
        missing: str = ""

        def start(self, engine: str, directory: Path) -> AbstractAsyncContextManager[Running]:
            return Direct().start(f"{engine.rpartition(':')[0]}:1", directory)

    nobody = tmp_path / "nobody.jsonl"
    await relay.measure([Absent()], [Shape(1, 20.0)], 2, TIMING, nobody, lambda line: None)
    assert list(record.read(nobody)) == [Missing("absent", "make it")]
    file = tmp_path / "runs.jsonl"
    async with asyncio.timeout(DEADLINE):
        await relay.measure([Wrong(), Direct()], [Shape(1, 20.0)], 2, TIMING, file, lambda line: None)
    failed, *others = record.read(file)
    assert isinstance(failed, Failed)
    assert "refused" in failed.why.lower()
    assert [one.contender for one in record.runs(others)] == ["engine alone"] * 2
    assert len(others) == 2


async def why_it_failed(contender: Contender, directory: Path) -> str:
    """Of this one and another one, which is measured all the same."""
    file = directory / "runs.jsonl"
    async with asyncio.timeout(DEADLINE):
        await relay.measure([contender, Direct()], [Shape(1, 20.0)], 1, TIMING, file, lambda line: None)
    failed, other = record.read(file)
    assert isinstance(failed, Failed)
    assert isinstance(other, Run)
    return failed.why


async def test_who_dies_while_it_is_measured_has_failed_and_the_others_go_on(tmp_path: Path) -> None:
    """Of two contenders the first loses a process in its window."""

    @dataclass(frozen=True)
    class Dying(Absent):
        name: str = "dying"
        missing: str = ""

        @asynccontextmanager
        async def start(self, engine: str, directory: Path) -> AsyncIterator[Running]:
            log = directory / "sleep.log"
            async with process(["sleep", str(TIMING.ramp + TIMING.warm + TIMING.window / 2 + 1)], log) as one:
                yield Running("chat", engine, "", {"node-1": one.pid})

    assert "node-1 has ended" in await why_it_failed(Dying(), tmp_path)


async def test_a_program_that_may_not_be_run_has_failed_and_the_others_go_on(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Broken(Absent):
        name: str = "broken"
        missing: str = ""

        @asynccontextmanager
        async def start(self, engine: str, directory: Path) -> AsyncIterator[Running]:
            async with process([directory / "nothing"], directory / "nothing.log"):
                yield Running("chat", engine, "", {})

    assert "nothing" in await why_it_failed(Broken(), tmp_path)


def test_a_peer_without_its_program_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "HOME", tmp_path)
    home = tmp_path / "vllm-router" / "bin"
    home.mkdir(parents=True)
    python, program = home / "python", home / "vllm-router"
    python.write_text("#!/bin/sh\necho 1.0\n")
    python.chmod(0o700)
    assert peers.VllmRouter().missing == peers.CURE
    program.touch(0o700)
    assert peers.VllmRouter().missing == ""


async def test_a_run_may_take_as_long_as_was_ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With next to nothing beyond it: the longest that can be ordered is over in time."""
    assert relay.Timing(ramp=10.0, warm=3.0, window=600.0).within(3) > 10.0 + 3.0 + 3 * 600.0
    monkeypatch.setattr(relay, "RUN_TIMEOUT", 0.0)
    timing, file = relay.Timing(ramp=0.0, warm=0.0, window=0.1), tmp_path / "runs.jsonl"
    async with asyncio.timeout(DEADLINE):
        await relay.measure([Direct()], [Shape(1, 20.0)], 1, timing, file, lambda line: None)
        monkeypatch.setattr(first, "RUN_TIMEOUT", 0.0)
        found = await first.once(Direct(), 10, 0)
    (failed,) = record.read(file)
    assert isinstance(failed, Failed)
    assert failed.why == "not done in 0.1 s"
    assert found.times.count == 10, "a second each, and not 0 s together"


async def test_the_mock_engine_ends_with_its_block(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE), mock_engine(tmp_path) as (url, pid):
        assert url.startswith("http://127.0.0.1:")
        assert pid


async def test_no_viewer_leaves_before_everything_is_measured(tmp_path: Path) -> None:
    """Thousands who left at once were in the figures of how late loops are."""
    async with asyncio.timeout(DEADLINE), mock_engine(tmp_path) as (url, _):
        order = Order("chat", url, "", Shape(1, 20.0), TIMING.ramp, TIMING.warm, 0.1)
        async with child("bench.load", order) as load:
            assert load.stdout is not None
            assert load.stdin is not None
            assert [await load.stdout.readline() for _ in range(2)] == [b"begin\n", b"end\n"]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(told := asyncio.create_task(load.stdout.readline())), 0.3)
            load.stdin.close()
            assert msgspec.json.decode(await told, type=Loaded).lost == 0


async def test_whoever_comes_back_is_timed_and_the_others_are_watched(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    async with asyncio.timeout(DEADLINE):
        await resume.measure(Okome(synced="1s"), Shape(10, 20.0), 20.0, 4000, 1, TIMING, file, lambda line: None)
    (found,) = record.read(file)
    assert isinstance(found, Resumed)
    assert (found.wrong, found.lost) == (0, 0)
    assert found.contender == "okome, synced every 1s"
    assert found.ring.count >= 10, "20 a second for two seconds"
    assert found.seconds
    assert 100 < found.events <= 4000
    assert all(one.count > 100 for one in (found.quiet, found.resuming, found.replaying))


async def test_it_is_an_error_when_nobody_came_back(tmp_path: Path) -> None:
    """What a WebSocket says has no cursor of an event stream; 0.0 ms is not what coming back took."""
    file, timing = tmp_path / "runs.jsonl", relay.Timing(ramp=0.1, warm=0.1, window=0.5)
    okome = Okome(synced="1s", websocket=True)
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(NotStarted, match="nobody came back"):
            await resume.measure(okome, Shape(2, 20.0), 20.0, 1000, 1, timing, file, lambda line: None)
    assert not file.exists()


async def test_first_tokens_are_timed_one_after_another(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    async with asyncio.timeout(DEADLINE):
        await first.measure([Direct(), Absent()], 3, 2, file, lambda line: None)
    missing, *found = record.read(file)
    assert missing == Missing("absent", "make it")
    assert [(one.contender, one.round) for one in found if isinstance(one, First)] == [
        ("engine alone", n) for n in (0, 1)
    ]
    assert all(one.times.count == 3 and one.times.p50 > 0 for one in found if isinstance(one, First))

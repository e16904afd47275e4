"""What the supervisor promises about processes, with small real processes."""

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from compose.up import keeper, readyfile
from compose.up.child import alive
from compose.up.keeper import Keeper, StartFailed, State
from compose.up.part import Part
from compose.up.ports import Ports
from compose.up.probe import Probe
from compose.up.supervisor import Supervisor

FAKE = Path(__file__).with_name("fake_role.py")
DEADLINE = 15.0


class Moves:
    """Remembers every move of every part and wakes whoever waits for one."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, State]] = []
        self._changed = asyncio.Event()

    def __call__(self, keeper: Keeper) -> None:
        self.seen.append((keeper.part.id, keeper.state))
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    def stopped(self) -> list[str]:
        return [name for name, state in self.seen if state is State.STOPPED]


@pytest.fixture
def ports() -> Iterator[Ports]:
    with Ports() as held:
        yield held


def fake(ports: Ports, role: str, *faults: str, name: str = "", **env: str) -> Part:
    port = ports.free()
    url = f"http://127.0.0.1:{port}"
    return Part(
        role=role,
        id=name or f"{role}-1",
        argv=(sys.executable, "-S", str(FAKE), str(port), str(os.getpid()), *faults),
        probe=f"{url}/readyz",
        env={**os.environ, **env},
        url=url,
        metrics=f"{url}/metrics",
        tells_engines=f"{url}/version" if role == "worker" else None,
    )


@asynccontextmanager
async def supervising(
    tmp_path: Path, stages: list[list[Part]], *, restarting: bool = True, start: float = 10.0, stop: float = 10.0
) -> AsyncIterator[tuple[Supervisor, Moves]]:
    probe, moves = Probe(), Moves()
    supervisor = Supervisor(
        stages,
        logs=tmp_path,
        probe=probe,
        on_change=moves,
        restarting=restarting,
        start_timeout=start,
        stop_timeout=stop,
    )
    try:
        async with supervisor:
            yield supervisor, moves
    finally:
        await probe.close()
    assert not [keeper.part.id for keeper in supervisor.keepers if keeper.pid and alive(keeper.pid)]


async def test_parts_start_stage_by_stage_and_end_in_the_reverse_of_who_needs_whom(
    tmp_path: Path, ports: Ports
) -> None:
    stages = [[fake(ports, "control")], [fake(ports, "worker"), fake(ports, "node")], [fake(ports, "ingress")]]
    async with supervising(tmp_path, stages) as (supervisor, moves):
        await supervisor.start()
        assert [keeper.state for keeper in supervisor.keepers] == [State.READY] * 4
        assert moves.seen.index(("control-1", State.READY)) < moves.seen.index(("node-1", State.STARTING))
    assert moves.stopped() == ["ingress-1", "node-1", "worker-1", "control-1"]
    assert supervisor.killed == []


async def test_a_killed_part_is_back_at_once_on_the_same_port(tmp_path: Path, ports: Ports) -> None:
    async with supervising(tmp_path, [[fake(ports, "node")]]) as (supervisor, moves):
        await supervisor.start()
        (node,) = supervisor.keepers
        first = node.pid
        os.kill(first, signal.SIGKILL)
        await moves.until(lambda: node.restarts == 1 and node.state is State.READY)
        assert node.pid != first
        assert node.last_end == "SIGKILL"
        assert not alive(first)


async def test_a_part_that_dies_while_it_restarts_is_started_again(tmp_path: Path, ports: Ports) -> None:
    part = fake(ports, "node", "once", FAKE_ROLE_MEMORY=str(tmp_path / "memory"))
    async with supervising(tmp_path, [[part]]) as (supervisor, moves):
        await supervisor.start()
        (node,) = supervisor.keepers
        os.kill(node.pid, signal.SIGKILL)
        await moves.until(lambda: node.restarts == 2 and node.state is State.READY)
        assert "exit status 7" in node.last_end


async def test_without_restarts_the_dead_stay_dead(tmp_path: Path, ports: Ports) -> None:
    async with supervising(tmp_path, [[fake(ports, "node")]], restarting=False) as (supervisor, moves):
        await supervisor.start()
        (node,) = supervisor.keepers
        os.kill(node.pid, signal.SIGKILL)
        await moves.until(lambda: node.gone)
        assert node.restarts == 0


async def test_a_part_that_does_not_start_says_why_and_shows_its_last_lines(tmp_path: Path, ports: Ports) -> None:
    stages = [[fake(ports, "control")], [fake(ports, "node", "ends"), fake(ports, "worker")]]
    async with supervising(tmp_path, stages) as (supervisor, _):
        with pytest.raises(StartFailed, match="node-1 did not start: it ended with exit status 7") as failure:
            await supervisor.start()
    assert failure.value.log[-1] == "I would rather not"


async def test_a_part_that_is_never_ready_is_given_up_at_the_deadline(tmp_path: Path, ports: Ports) -> None:
    async with supervising(tmp_path, [[fake(ports, "node", "late")]], start=4.0) as (supervisor, _):
        with pytest.raises(StartFailed, match="not ready after 4 s: 503 still dreaming"):
            await supervisor.start()


async def test_who_does_not_end_by_the_deadline_is_killed(tmp_path: Path, ports: Ports) -> None:
    async with supervising(tmp_path, [[fake(ports, "node", "deaf")]], stop=0.5) as (supervisor, _):
        await supervisor.start()
    assert supervisor.killed == ["node-1"]


async def test_who_does_not_end_leaves_those_below_it_the_time_to_end_by_themselves(
    tmp_path: Path, ports: Ports
) -> None:
    stages = [[fake(ports, "nats")], [fake(ports, "control")], [fake(ports, "worker", "deaf")]]
    async with supervising(tmp_path, stages, stop=4.0) as (supervisor, _):
        await supervisor.start()
    assert supervisor.killed == ["worker-1"]


async def test_a_start_that_takes_long_says_what_it_waits_for(
    tmp_path: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "SLOW", 0.0)
    async with supervising(tmp_path, [[fake(ports, "node", "late")]]) as (supervisor, moves):
        starting = asyncio.create_task(supervisor.start())
        await moves.until(lambda: supervisor.keepers[0].waits_for == "503 still dreaming")
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    assert supervisor.keepers[0].waits_for == ""


async def test_in_a_hurry_nobody_is_waited_for(tmp_path: Path, ports: Ports) -> None:
    async with supervising(tmp_path, [[fake(ports, "node", "deaf")]], stop=600.0) as (supervisor, _):
        await supervisor.start()
        supervisor.hurry.set()
    assert supervisor.killed == ["node-1"]


async def test_an_engine_is_known_by_its_worker_and_ends_with_it(tmp_path: Path, ports: Ports) -> None:
    async with supervising(tmp_path, [[fake(ports, "worker", "engine")]]) as (supervisor, moves):
        await supervisor.start()
        (worker,) = supervisor.keepers
        (engine,) = worker.engines
        assert (engine.id, engine.restarts) == ("worker-1-model", 0)
        assert alive(engine.pid)
        os.kill(worker.pid, signal.SIGKILL)
        await moves.until(lambda: worker.restarts == 1 and worker.state is State.READY)
        (second,) = worker.engines
        assert second.pid != engine.pid
        assert second.restarts == 1
    assert not alive(engine.pid)
    assert not alive(second.pid)


async def test_stopping_while_a_part_starts_leaves_nothing(tmp_path: Path, ports: Ports) -> None:
    async with supervising(tmp_path, [[fake(ports, "node", "late")]]) as (supervisor, moves):
        starting = asyncio.create_task(supervisor.start())
        await moves.until(lambda: supervisor.keepers[0].state is State.STARTING)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


async def test_the_ready_file_has_the_documented_shape(tmp_path: Path, ports: Ports) -> None:
    async with supervising(tmp_path, [[fake(ports, "worker", "engine")]]) as (supervisor, _):
        await supervisor.start()
        document = readyfile.describe(
            supervisor.keepers,
            url="http://127.0.0.1:1",
            page_url="http://127.0.0.1:1/#t=x",
            api_key="ok_x",
            nats_url="nats://127.0.0.1:2",
            redis_url="redis://127.0.0.1:3",
            data=tmp_path,
        )
    path = tmp_path / "ready.json"
    readyfile.write(path, readyfile.dump(document))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read = json.loads(path.read_text())
    assert list(read) == ["url", "page_url", "api_key", "nats_url", "redis_url", "data", "processes"]
    assert [process["role"] for process in read["processes"]] == ["worker", "engine"]
    for process in read["processes"]:
        assert list(process) == ["role", "id", "pid", "restarts", "url", "metrics"]


def test_a_reader_never_sees_half_a_ready_file(tmp_path: Path) -> None:
    """The file is replaced, not rewritten: whoever has it open keeps the old one whole, and no draft is left."""
    path = tmp_path / "ready.json"
    readyfile.write(path, "1" * 100_000)
    with path.open() as old:
        readyfile.write(path, "2")
        assert old.read() == "1" * 100_000
    assert path.read_text() == "2"
    assert [entry.name for entry in tmp_path.iterdir()] == ["ready.json"]

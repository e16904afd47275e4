"""The test bed of a worker: streams and buckets in a real NATS, OKOME's and a node's part played by the test."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from broker.bus import log
from broker.bus.chain import Chain
from broker.bus.follow import Follow
from broker.bus.frames import TERMINAL, TOKEN, Frame, decode_frame
from broker.bus.health import Health
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.records import Beat, Generation, Job, Message, Request, decode, encode
from broker.bus.subjects import job_subject, worker_subject
from gpu_worker.engines import Engine, EngineSettings, create
from gpu_worker.settings import WorkerSettings
from gpu_worker.worker import Worker

PARTITION = "00"
SID = "00testsession"
DEADLINE = 20.0
ROOT = Path(__file__).parents[2]


class Bed:
    """Reads every frame as it is stored. `until` waits for anything that a frame or a beat may change."""

    def __init__(self, url: str, bus: Bus) -> None:
        self.url = url
        self.bus = bus
        self.generations = Bucket(bus, "generations")
        self.frames: list[tuple[str, Frame]] = []
        self.beats: dict[str, Beat] = {}
        self.verdicts: list[tuple[str, bytes]] = []  # every ack and nak of a job, by whoever
        self._news = asyncio.Event()
        self._follow = Follow(bus, f"TOK_{PARTITION}", [f"tok.{PARTITION}.*"], "bed", self._take, after=0)

    async def make(self, *, storage: str = "memory", **log_config: Any) -> None:
        stream = {"storage": storage, "num_replicas": 1, "allow_direct": True}
        jobs = stream | {"name": "JOBS", "subjects": ["job.*.*"], "retention": "workqueue"}
        await self.bus.api("STREAM.CREATE.JOBS", jobs | {"duplicate_window": 120_000_000_000})
        tokens = stream | {"name": f"TOK_{PARTITION}", "subjects": [f"tok.{PARTITION}.*"], "discard": "new"}
        await self.bus.api(f"STREAM.CREATE.TOK_{PARTITION}", tokens | log_config)
        for bucket in ("generations", "models"):
            kv = stream | {"name": f"KV_{bucket}", "subjects": [f"$KV.{bucket}.>"], "max_msgs_per_subject": 1}
            await self.bus.api(f"STREAM.CREATE.KV_{bucket}", kv | {"allow_rollup_hdrs": True})
        await self.bus.subscribe("beat.*", self._hear)
        await self.bus.subscribe("$JS.ACK.JOBS.>", self._overhear)
        await self._follow.start()

    async def close(self) -> None:
        await self._follow.close()
        await self.bus.close()

    def _take(self, seq: int, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
        self.frames.append((subject.rpartition(".")[2], decode_frame(data, seq)))
        self._news.set()

    async def _hear(self, msg: Any) -> None:
        beat = decode(msg.data, Beat)
        self.beats[beat.worker] = beat
        self._news.set()

    async def until(self, what: Callable[[], Any], deadline: float = DEADLINE) -> Any:
        """Wait until `what()` is true, looking whenever something was stored or somebody beat."""
        async with asyncio.timeout(deadline):
            while not (found := what()):
                self._news.clear()
                await self._news.wait()
            return found

    async def _overhear(self, msg: Any) -> None:
        if msg.data != b"+WPI":
            self.verdicts.append((msg.subject, msg.data))
            self._news.set()

    # -- what a client asks ------------------------------------------------------------------------------------------

    async def ask(
        self, gid: str, prompt: Any, *, sid: str = SID, after: int | None = None, enqueue: bool = True, **changes: Any
    ) -> Job:
        """Record and enqueue a generation as OKOME does. `prompt`: a script, or the messages."""
        messages = prompt if isinstance(prompt, list) else [Message("user", json.dumps(prompt))]
        options = {"max_tokens": 100_000} | changes.pop("request", {})
        request = Request(changes.pop("model", "scripted"), messages, **options)
        if after is None:
            end = await log.last(self.bus, f"TOK_{PARTITION}", f"tok.{PARTITION}.{sid}")
            after = end.seq if end else 0
        job = Job(gid, sid, "default", request, after, 0, **changes)
        record = Generation(gid, sid, "default", request, created_at=after, after=after)
        await self.generations.put(f"{sid}.{gid}", encode(record))
        if enqueue:
            await self.enqueue(job)
        return job

    async def enqueue(self, job: Job, worker: str | None = None) -> None:
        await log.store(self.bus, job_subject(job.request.model, worker), encode(job), msg_id=job.gid, timeout=20)

    async def record(self, gid: str, sid: str = SID, **changes: Any) -> None:
        def edit(old: bytes | None) -> bytes:
            assert old is not None
            return encode(msgspec.structs.replace(decode(old, Generation), **changes))

        await self.generations.change(f"{sid}.{gid}", edit)

    async def cancel(self, gid: str, *workers: str, sid: str = SID) -> None:
        """As a node does: KV first, then the nudges."""
        await self.record(gid, sid, cancel=True)
        for worker in workers:
            await self.bus.publish(worker_subject(worker, "cancel"), json.dumps({"sid": sid, "gid": gid}).encode())

    # -- what came of it ---------------------------------------------------------------------------------------------

    def of(self, gid: str) -> list[Frame]:
        return [frame for _, frame in self.frames if frame.gid == gid]

    def types(self, gid: str) -> list[str]:
        return [frame.type for frame in self.of(gid)]

    def tokens(self, gid: str) -> int:
        return sum(frame.n for frame in self.of(gid))

    def text(self, gid: str) -> str:
        return "".join(frame.fields()["text"] for frame in self.of(gid) if frame.type == TOKEN)

    async def ended(self, gid: str, deadline: float = DEADLINE) -> Frame:
        """Wait for its terminal; the log of its session must be one chain."""
        found = await self.until(lambda: [f for f in self.of(gid) if f.type in TERMINAL], deadline)
        self.verify()
        assert len(found) == 1
        frame: Frame = found[0]
        return frame

    def verify(self) -> None:
        """Every session's log is a chain, from its first frame to its last."""
        chains: dict[str, Chain] = {}
        for sid, frame in self.frames:
            chains.setdefault(sid, Chain()).advance(frame)

    async def jobs_left(self) -> int:
        return (await log.stream_info(self.bus, "JOBS")).messages

    async def no_jobs_left(self) -> None:
        """The last ack is on its way when the terminal is seen; beats say when it must have arrived."""
        async with asyncio.timeout(DEADLINE):
            while await self.jobs_left():
                self._news.clear()
                await self._news.wait()

    async def holds(self, worker: str, *gids: str) -> None:
        await self.until(lambda: worker in self.beats and set(gids) <= set(self.beats[worker].held))

    # -- workers -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def worker(
        self, id: str, engine: Engine | None = None, *, slots: int = 10_000, url: str = "", **settings: Any
    ) -> AsyncIterator[Here]:
        """A worker in this process. Leaving the block drains it, unless it was killed."""
        bus = await Bus.connect(url or self.url, id)
        settings = {"drain_timeout": 1.0} | settings
        engine = engine or create("scripted", EngineSettings(scripted_slots=slots, queue_limit=0))
        here = Here(id, bus, engine, WorkerSettings(id=id, engine="scripted", **settings))
        try:
            await here.start()
            yield here
        finally:
            await here.close()


class Here:
    """A worker that lives in the test's process."""

    def __init__(self, id: str, bus: Bus, engine: Engine, settings: WorkerSettings) -> None:
        self.bus = bus
        self.engine = engine
        self.stop = asyncio.Event()
        self.health = Health("worker", id)
        self.worker = Worker(bus, id, [engine], settings, self.health)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.engine.start()
        self._task = asyncio.create_task(self.worker.run(self.stop))
        async with asyncio.timeout(DEADLINE):
            await self.worker.serving.wait()

    async def kill(self) -> None:
        """Gone in an instant, as far as the others can tell: nothing said, nothing given back."""
        await self.bus.close()
        await self.close()

    async def close(self) -> None:
        self.stop.set()
        if self._task is not None:
            await asyncio.wait_for(self._task, DEADLINE)
            self._task = None
        await self.engine.close()
        await self.bus.close()


class Process:
    """A worker as a process of its own, to be stopped and killed by signals."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode())
            self._news.set()

    async def says(self, event: str) -> str:
        """Wait until its log has that event."""
        async with asyncio.timeout(DEADLINE):
            while not (found := [line for line in self.lines if event in line]):
                self._news.clear()
                await self._news.wait()
            return found[0]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @classmethod
    async def start(cls, url: str, id: str, *, until: str = "worker.started", **settings: str) -> Process:
        """It runs, and has said `until`."""
        environment = {
            "OKOME_WORKER_ID": id,
            "OKOME_WORKER_ENGINE": "scripted",
            "OKOME_WORKER_NATS_URL": url,
            **{f"OKOME_WORKER_{name.upper()}": value for name, value in settings.items()},
        }
        code = "import sys; from gpu_worker.role import run; sys.exit(run())"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, cwd=ROOT, env=os.environ | environment, stderr=asyncio.subprocess.PIPE
        )
        worker = cls(process)
        await worker.says(until)
        return worker

    async def close(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return await asyncio.wait_for(self.process.wait(), DEADLINE)
        finally:
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()
            await self._reader

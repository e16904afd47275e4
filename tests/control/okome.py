"""OKOME replicas and the rest of the system as a test plays it: workers that beat, take jobs and write frames."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from broker.bus import operations as ops
from broker.bus.clock import now_ms
from broker.bus.credentials import Verifier
from broker.bus.errors import BusUnavailable, Refusal
from broker.bus.frames import ATTEMPT, DONE, START, TOKEN, Frame, decode_frame, encode_frame
from broker.bus.kv import Bucket
from broker.bus.log import read_all, store
from broker.bus.nats import Bus
from broker.bus.records import Beat, Generation, Load, Message, Model, Request, Session, decode, encode
from broker.bus.subjects import beat_subject, log_stream, log_subject, partition_of
from broker.bus.subjects import encode as encode_name
from control.app import Okome
from control.settings import ControlSettings

DEADLINE = 10.0
TENANT = "acme"
SCRIPT = '{"tokens": 3, "seed": 1}'


def settings(url: str, **changes: Any) -> ControlSettings:
    quick = {"partitions": 2, "sweep_interval": 0.05, "reconcile_interval": 0.2, "api_key": "ok_first"}
    return ControlSettings(nats_url=url, **{**quick, **changes})


@contextlib.asynccontextmanager
async def replica(url: str, **changes: Any) -> AsyncIterator[Okome]:
    okome = Okome(settings(url, **changes))
    running = None
    try:
        await okome.start()
        running = asyncio.create_task(okome.run())
        yield okome
    finally:
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await okome.close()


@contextlib.asynccontextmanager
async def connected(url: str, name: str = "test") -> AsyncIterator[Bus]:
    bus = await Bus.connect(url, name)
    try:
        yield bus
    finally:
        await bus.close()


async def until(seen: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """What `seen` (a coroutine function or a plain one) returns once it is true; asked again and again."""
    try:
        async with asyncio.timeout(deadline):
            while True:
                value = seen()
                value = await value if asyncio.iscoroutine(value) else value
                if value:
                    return value
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not in {deadline} s: {what}") from None


class PlayedWorker:
    """A worker of one or more models that beats, and does what the test says."""

    def __init__(self, bus: Bus, id: str, *models: str, engine: str = "played", slots: int = 4, queue: int = 4) -> None:
        self.bus = bus
        self.id = id
        self.instance = f"{id}/1"
        self.models = models
        self.engine = engine
        self.load = Load(slots, 0, 0, queue)
        self.held: dict[str, str] = {}
        self.warm: list[str] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for model in self.models:
            record = Model(model, self.engine, 1000, now_ms())
            await Bucket(self.bus, "models").put(encode_name(model), encode(record))
        self._task = asyncio.create_task(self._beat())

    async def die(self) -> None:
        """Silence, from now on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def say(self) -> None:
        """One beat, now."""
        models = dict.fromkeys(self.models, self.load)
        beat = Beat(self.id, self.instance, now_ms(), models, dict(self.held), list(self.warm))
        await self.bus.publish(beat_subject(self.id), encode(beat))

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(BusUnavailable):  # cut off: nobody hears it, and it beats on
                await self.say()
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def worker(okome: Okome, bus: Bus, id: str = "w1", *models: str, **options: Any) -> AsyncIterator[PlayedWorker]:
    """A worker that every replica has heard of, with its models."""
    played = PlayedWorker(bus, id, *(models or ("m",)), **options)
    await played.start()
    try:
        await until(lambda: id in okome.pulse.workers(), f"{id} is heard")
        for model in played.models:
            await until(functools.partial(_routed, bus, model), f"{model} is known")
        yield played
    finally:
        await played.die()


async def known_to_both(bus: Bus, model: str = "m") -> None:
    """Both replicas know the model and who runs it, each in its own time: so many questions meet either of them."""
    for _ in range(20):
        await until(functools.partial(_routed, bus, model), f"{model} is known to both")


async def _routed(bus: Bus, model: str) -> bool:
    try:
        return bool((await bus.ask("route", ops.Explain(model), ops.Route)).workers)
    except Refusal:
        return False


# -- what clients ask -------------------------------------------------------------------------------------------------


async def new_session(bus: Bus, **fields: Any) -> str:
    question = ops.CreateSession(**{"tenant": TENANT, "subject": "k1", **fields})
    return (await bus.ask("session_create", question, ops.SessionToken, timeout=8)).session_id


async def generate(
    bus: Bus, sid: str, prompt: str = "hello", *, key: str = "", tenant: str = TENANT, warm: str = "", **request: Any
) -> ops.GenerationCreated:
    asked = Request(**{"model": "m", "messages": [Message("user", prompt)], **request})
    return await bus.ask(
        "generation_create", ops.CreateGeneration(tenant, sid, asked, key, warm), ops.GenerationCreated, timeout=8
    )


async def refused(bus: Bus, sid: str, prompt: str = "hello", **fields: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await generate(bus, sid, prompt, **fields)
    return caught.value


async def verifier(bus: Bus) -> Verifier:
    made = Verifier()
    for kid, entry in (await Bucket(bus, "jwks").all()).items():
        made.take(kid, entry.value)
    return made


async def session_record(bus: Bus, sid: str, tenant: str = TENANT) -> Session | None:
    entry = await Bucket(bus, "sessions").get(f"{tenant}.{sid}")
    return decode(entry.value, Session) if entry else None


async def generation_record(bus: Bus, sid: str, gid: str) -> Generation | None:
    entry = await Bucket(bus, "generations").get(f"{sid}.{gid}")
    return decode(entry.value, Generation) if entry else None


async def frames(bus: Bus, sid: str) -> list[Frame]:
    stored = await read_all(bus, log_stream(partition_of(sid)), log_subject(sid))
    return [decode_frame(message.data, message.seq) for message in stored]


async def jobs(bus: Bus) -> dict[str, int]:
    """Job subjects and how many wait there."""
    answer = await bus.api("STREAM.INFO.JOBS", {"subjects_filter": "job.*.*"})
    return dict(answer["state"].get("subjects") or {})


async def last_sequences(bus: Bus, streams: list[str]) -> list[int]:
    return [(await bus.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"] for stream in streams]


# -- what a worker writes ----------------------------------------------------------------------------------------------


class Writer:
    """The frames of one generation, as its worker would write them."""

    def __init__(self, bus: Bus, sid: str, gid: str, prev: int, attempt: str = "aaaaaaaa") -> None:
        self.bus = bus
        self.sid = sid
        self.gid = gid
        self.prev = prev
        self.attempt = attempt
        self.epoch = 1
        self.offset = 0

    async def write(self, kind: str, data: dict[str, Any] | None = None, n: int = 0) -> int:
        payload = encode_frame(
            kind, self.gid, self.epoch, self.attempt, self.prev, self.offset, n, {"t": now_ms(), **(data or {})}
        )
        self.prev = await store(self.bus, log_subject(self.sid), payload, expect_last=self.prev)
        self.offset += n
        return self.prev

    async def begin(self, prompt: str = "hello") -> None:
        said = [{"role": "user", "content": prompt}]
        await self.write(START, {"epoch": 1, "model": "m", "worker": "w1", "input": said})

    async def say(self, *texts: str) -> None:
        for text in texts:
            await self.write(TOKEN, {"text": text, "n": 1}, 1)

    async def again(self, attempt: str) -> None:
        self.epoch += 1
        self.attempt = attempt
        await self.write(ATTEMPT, {"epoch": self.epoch, "worker": "w2"})

    async def done(self) -> None:
        await self.write(DONE, {"finish_reason": "stop"})


async def answer(bus: Bus, sid: str, created: ops.GenerationCreated, *texts: str) -> Writer:
    """Write a whole generation, as a worker would."""
    record = await generation_record(bus, sid, created.generation_id)
    assert record is not None
    writer = Writer(bus, sid, created.generation_id, record.after)
    await writer.begin()
    await writer.say(*texts)
    await writer.done()
    return writer


async def ended(bus: Bus, sid: str, gid: str) -> dict[str, Any]:
    told: dict[str, Any] = await bus.ask("generation_ended", ops.GenerationEnded(sid, gid), dict)
    return told


def plain(record: msgspec.Struct) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(record)
    return fields


async def cancel(bus: Bus, sid: str, gid: str) -> None:
    """As a node does it."""

    def ask(value: bytes | None) -> bytes | None:
        assert value is not None
        return encode(msgspec.structs.replace(decode(value, Generation), cancel=True))

    await Bucket(bus, "generations").change(f"{sid}.{gid}", ask)


async def status_of(bus: Bus, sid: str, gid: str) -> Generation | None:
    record = await generation_record(bus, sid, gid)
    return record if record is not None and not record.status.open else None

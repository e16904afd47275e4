"""▸ The sweeper may write one thing, a terminal, under the same rules as a worker; and only one replica sweeps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.bus.errors import WrongLastSequence
from broker.bus.frames import CANCELLED, DONE
from broker.bus.nats import Bus, Msg
from broker.bus.records import Beat, Load, encode
from broker.bus.subjects import beat_subject
from control.app import Okome
from control.endings import Endings
from control.pulse import Pulse
from tests.control.okome import (
    Writer,
    connected,
    frames,
    generate,
    generation_record,
    known_to_both,
    new_session,
    replica,
    until,
    worker,
)
from tests.fixtures.nats_server import NatsServer


async def test_a_worker_that_writes_at_the_last_moment_wins_over_the_sweeper(okome: Okome, bus: Bus) -> None:
    """Between the sweeper's look at the log and its terminal a late worker stores a frame: the fence decides."""
    sid = await new_session(bus)
    async with worker(okome, bus) as alive:
        made = await generate(bus, sid)
        alive.held = {made.generation_id: "held"}  # so that nobody else sweeps it away meanwhile
        writer = Writer(bus, sid, made.generation_id, 0)
        await writer.begin()
        await writer.say("a")
        came: list[int] = []

        class Late(Bus):
            async def request(self, subject: str, payload: bytes = b"", **options: object) -> Msg:
                if subject.startswith("tok.") and not came:
                    came.append(await writer.write("token", {"text": "b", "n": 1}, 1))
                return await super().request(subject, payload, **options)  # type: ignore[arg-type]

        late = await Late.connect(bus_url(bus), "late")
        try:
            record = await generation_record(bus, sid, made.generation_id)
            assert record is not None
            assert await Endings(late, "okome-x").end(record, CANCELLED) is False
        finally:
            await late.close()
        assert came, "the fault happened"
        assert [frame.type for frame in await frames(bus, sid)] == ["start", "token", "token"]
        await writer.done()
        assert (await frames(bus, sid))[-1].type == DONE


async def test_after_the_sweepers_terminal_a_late_worker_is_fenced(okome: Okome, bus: Bus) -> None:
    """Exactly one terminal frame, although both of them mean to write one."""
    sid = await new_session(bus)
    async with worker(okome, bus) as alive:
        made = await generate(bus, sid)
        alive.held = {made.generation_id: "held"}
        writer = Writer(bus, sid, made.generation_id, 0)
        await writer.begin()
        await writer.say("a")
        record = await generation_record(bus, sid, made.generation_id)
        assert record is not None
        assert await Endings(bus, "okome-x").end(record, CANCELLED) is True
        with pytest.raises(WrongLastSequence):
            await writer.done()
        assert [frame.type for frame in await frames(bus, sid)] == ["start", "token", "cancelled"]


async def test_a_replica_that_is_not_the_first_leaves_the_sweeping_alone(fresh_nats: NatsServer) -> None:
    async with (
        replica(fresh_nats.url, id="a", sweep_interval=60) as first,
        replica(fresh_nats.url, id="b") as second,
        connected(fresh_nats.url) as bus,
    ):
        await until(lambda: first.pulse.active() and not second.pulse.active(), "the first one leads")
        async with worker(first, bus):
            await known_to_both(bus)
            sid = await new_session(bus)
            made = await generate(bus, sid)
            writer = Writer(bus, sid, made.generation_id, 0)
            await writer.begin()
            await writer.say("a")
            await writer.done()
            # Longer than an active sweeper listens before it acts, and several rounds of the second one's.
            heard: asyncio.Queue[Msg] = asyncio.Queue()
            await bus.subscribe(beat_subject(second.pulse.name), heard.put)
            for _ in range(12):
                await asyncio.wait_for(heard.get(), 5)
            record = await generation_record(bus, sid, made.generation_id)
            assert record is not None
            assert record.status.open, "the second replica swept"


class Deaf(Bus):
    """Says that its way to NATS does not answer."""

    hears = False

    @property
    def round_trip_ok(self) -> bool:
        return self.hears


class Frozen(Bus):
    """Its way to NATS worked a second ago, and what it says now does not come back."""

    hears = False

    async def publish(self, subject: str, payload: bytes, **options: Any) -> None:
        if self.hears or not subject.startswith("beat."):
            await super().publish(subject, payload, **options)


@pytest.mark.parametrize("kind", [Deaf, Frozen])
async def test_a_replica_that_cannot_hear_naks_nobody(nats: NatsServer, kind: type[Deaf] | type[Frozen]) -> None:
    """▸ A worker is suspected only while the observer's own round trip works, now and not a second ago."""
    bus = await kind.connect(nats.url, "deaf")
    assert isinstance(bus, kind)
    pulse = Pulse(bus, "deaf")
    reply = f"naks.for.{pulse.instance}"
    naks: asyncio.Queue[Msg] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    async with connected(nats.url) as other:
        await other.subscribe(reply, naks.put)
        await other.api("INFO")
        await pulse.start()
        running = asyncio.create_task(pulse.run())
        try:
            await bus.api("INFO")
            await other.publish(beat_subject("w1"), encode(Beat("w1", "one", 0, {"m": Load(1, 1, 0, 0)}, {"g": reply})))
            await until(lambda: "w1" in pulse.workers(60), "the worker is heard")
            heard_at = loop.time()
            await until(lambda: loop.time() > heard_at + 1.6, "longer than any silence that is believed")
            assert naks.empty()
            bus.hears = True
            assert (await asyncio.wait_for(naks.get(), 5)).data == b"-NAK"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await pulse.close()
            await bus.close()


def bus_url(bus: Bus) -> str:
    return f"nats://{bus.server}"

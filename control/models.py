"""The models that can be asked for, as their workers wrote them into KV `models`."""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from broker.bus.errors import BusError, Refusal
from broker.bus.jobs import ensure_consumer
from broker.bus.kv import Watch
from broker.bus.nats import Bus
from broker.bus.records import Model, decode

SCRIPTED = "scripted"  # the engine whose prompts are scripts; never anybody's default while there is another

log = structlog.get_logger("control")


class Models:
    """A watch on the bucket. A model that appears gets its queue at once."""

    def __init__(self, bus: Bus, default: str = "") -> None:
        self.known: dict[str, Model] = {}
        self._bus = bus
        self._default = default
        self._watch = Watch(bus, "models", "okome-models", on_change=self._take)
        self._keys: dict[str, str] = {}  # bucket key -> model id
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._watch.start()

    async def close(self) -> None:
        await self._watch.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def find(self, name: str) -> Model:
        """Raises Refusal `unknown_model`."""
        try:
            return self.known[name]
        except KeyError:
            raise Refusal("unknown_model", f"there is no model {name[:80]!r}", param="model") from None

    def choose(self, *wishes: str) -> Model:
        """The first model wished for, else the default, else the oldest real one. Raises Refusal."""
        for wish in (*wishes, self._default):
            if wish:
                return self.find(wish)
        if not self.known:
            raise Refusal("unavailable", "no worker has offered a model yet", retry_after=1)
        return min(self.known.values(), key=lambda model: (model.engine == SCRIPTED, model.created_at, model.id))

    def _take(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.known.pop(self._keys.pop(key, ""), None)
            return
        try:
            model = decode(value, Model)
        except msgspec.MsgspecError as error:
            log.warning("model.unreadable", key=key, error=str(error))
            return
        self._keys[key] = model.id
        self.known[model.id] = model
        task = asyncio.create_task(self._make_queue(model.id), name=f"queue-{key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make_queue(self, model: str) -> None:
        try:
            await ensure_consumer(self._bus, model)
        except BusError as error:  # its workers make it too
            log.warning("model.without_queue", model=model, error=str(error))

"""A worker process over the model of NATS: the real worker with an engine that says what it is told to.

It has a loop of its own, so that it can stand still while everybody else goes on, and come back as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Literal

from broker.bus.errors import OkomeError
from broker.bus.health import Health
from gpu_worker.engines import EngineFailed, Finish, ModelCard, Piece, Prefix, Prompt, Say
from gpu_worker.engines.engine import unsaid
from gpu_worker.outbox import Outbox
from gpu_worker.settings import WorkerSettings
from gpu_worker.worker import Worker
from tests.models.nats_model import NatsModel

MODEL = "m"
TOKENS = 12  # of every answer
PACE = 0.12  # seconds from most tokens to the next


def kind_of(offset: int) -> Literal["token", "reasoning"]:
    return "reasoning" if offset in (2, 3) else "token"


def text_of(gid: str, offset: int) -> str:
    """Every token of every answer is another one."""
    return f"{gid}.{offset} "


class ScriptEngine:
    """Says token `offset` of whatever generation is named by the prompt. `fails`: breaks off so many times."""

    def __init__(self) -> None:
        self.fails = 0
        self.wrong = ""
        self.cards = (ModelCard(MODEL, 4096, 2, 2, "model", default_max_tokens=None),)

    async def start(self, say: Say = unsaid) -> None: ...

    async def close(self) -> None: ...

    def children(self) -> list[tuple[str, int]]:
        return []

    async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
        gid = prompt.messages[-1].content
        said = "".join(text_of(gid, offset) for offset in range(prefix.tokens) if kind_of(offset) == "token")
        if prefix.text != said:
            self.wrong = f"asked to go on from {prefix}"  # what an engine raises is weather to whoever asked it
        for offset in range(prefix.tokens, TOKENS):
            if self.fails:
                self.fails -= 1
                raise EngineFailed("engine_failed", "the model says so", retryable=True)
            yield Piece(text_of(gid, offset), 1, kind_of(offset))
            if offset % 3:
                await asyncio.sleep(PACE)
        yield Finish("stop", 1, TOKENS)


class WorkerModel:
    """One process, from its start to its death."""

    def __init__(self, nats: NatsModel, name: str) -> None:
        self.name = name
        self.loop = nats.clock.loop()
        self.bus = nats.connect(self.loop, name)
        self.client = nats.client_of(self.bus)
        self.engine = ScriptEngine()
        self.gone = False
        self._nats = nats
        self._stop = asyncio.Event()
        self.worker: Worker | None = None
        self.task = self.loop.create_task(self._run())

    async def _run(self) -> None:
        settings = WorkerSettings.model_construct(
            max_pause=20.0, grace=30.0, cancel_interval=5.0, lost_timeout=60.0, drain_timeout=1.0
        )
        self.worker = Worker(self.bus, self.name, [self.engine], settings, Health("worker", self.name))
        await self.worker.run(self._stop)

    @property
    def outboxes(self) -> list[Outbox]:
        """Of the attempts that are being written here."""
        answers = [held._answer for held in self.worker.held.values()] if self.worker else []
        publishers = [answer._publisher for answer in answers if answer is not None]
        return [publisher.outbox for publisher in publishers if publisher is not None]

    def freeze(self, frozen: bool) -> None:
        self.loop.frozen = frozen

    def drain(self) -> None:
        if self.worker is not None:
            self.worker.drain_asked.set()

    def kill(self) -> None:
        """The process is gone: it says nothing any more, and nothing reaches it."""
        if self.gone:
            return
        self.gone = True
        self.client.is_connected = False
        self._nats.clients.remove(self.client)
        self.loop.frozen = False
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        while self.loop.turn():
            pass
        self._nats.clock.loops.remove(self.loop)
        if self.task.done() and not self.task.cancelled() and not isinstance(self.task.exception(), OkomeError):
            self.task.result()
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()

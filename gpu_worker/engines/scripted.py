"""The scripted engine: plays the script in the last user message, byte for byte and on time. No model, no child.

Where a script wants the clock the bytes are not known beforehand: each token says when it was made.
"""

import asyncio
import time
from collections.abc import AsyncGenerator

from broker.bus.script import MAX_TOKENS, Script, ScriptInvalid, parse_script
from gpu_worker.engines.engine import (
    EngineFailed,
    EngineSettings,
    Finish,
    ModelCard,
    Piece,
    Prefix,
    Prompt,
    Say,
    unsaid,
)
from gpu_worker.engines.schedule import MAX_PIECE, schedule
from gpu_worker.engines.ticker import Ticker

HALF = "\ud83d"
"""Half a character, which is no text: what an engine says that decodes its tokens one by one."""


class ScriptedEngine:
    """See api.md, "The scripted engine". Paced by absolute deadlines: a late wake-up is made up for, several tokens
    then come in one Piece of at most MAX_PIECE. `max_tokens` cuts with finish_reason `length`; temperature, stop and
    seed of the prompt mean nothing to a script. A prompt token is a word here.

    CPU: 13 µs per token, read by a consumer that only counts: 1 000 generations at 20 tokens/s take 27 % of one core
    (asyncio and uvloop alike, Python 3.11, time.process_time over 5 s); 16–17 µs with an `asyncio.sleep` per token
    instead of the ticker; 0.3 µs at rate 0.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._slots = settings.scripted_slots
        self._queue_limit = settings.queue_limit
        self._running = 0
        self._ticker = Ticker()
        self._closed = False

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        return (ModelCard("scripted", MAX_TOKENS, self._slots, self._queue_limit, "scripted", None),)

    async def start(self, say: Say = unsaid) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        self._closed = True
        self._ticker.close()

    def children(self) -> list[tuple[str, int]]:
        return []

    async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
        if self._closed:
            raise EngineFailed("engine_failed", "the engine is closed", retryable=True)
        said = [message.content for message in prompt.messages if message.role == "user"]
        try:
            script = parse_script(said[-1] if said else "")
        except ScriptInvalid as error:
            raise EngineFailed("engine_failed", f"not a script: {error}", retryable=False) from error
        if self._running >= self._slots:
            raise EngineFailed("overloaded", f"{self._slots} scripted generations are running", retryable=True)
        end = script.tokens if prompt.max_tokens is None else min(script.tokens, prompt.max_tokens)
        self._running += 1
        try:
            loop = asyncio.get_running_loop()
            began = loop.time()
            steps = schedule(script, prefix.tokens, end)
            step = next(steps, None)
            while step is not None:
                now = loop.time() - began
                if step.due > now:
                    await self._ticker.until(began + step.due)
                    now = loop.time() - began
                else:
                    await asyncio.sleep(0)
                if self._closed:
                    raise EngineFailed("engine_failed", "the engine was closed", retryable=True)
                _, first, n = step
                if n == 0:
                    raise EngineFailed("engine_failed", f"the script fails at token {first}", retryable=False)
                step = next(steps, None)
                if first == script.broken_at:
                    yield Piece(HALF, 1)
                    continue
                while (
                    step is not None
                    and step.due <= now
                    and 0 < step.n <= MAX_PIECE - n
                    and step.first != script.broken_at
                ):
                    n += step.n
                    step = next(steps, None)
                yield Piece(_text(script, first, n), n)
        finally:
            self._running -= 1
        words = sum(len(message.content.split()) for message in prompt.messages)
        yield Finish("length" if end < script.tokens else "stop", words, max(end, prefix.tokens))


def _text(script: Script, first: int, n: int) -> str:
    if script.clock:
        at = time.monotonic_ns() // 1000
        return "".join([f"{index}:{at} " for index in range(first, first + n)])
    return script.token(first) if n == 1 else script.text(first, first + n)

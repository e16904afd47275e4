"""A pouring engine, pulled: its pieces one by one, for whoever would rather ask than be told."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from gpu_worker.engines.engine import Finish, Piece, Pouring, Prefix, Prompt, Tap

HIGH, LOW = 256, 64
"""Pieces nobody has asked for yet: at the first the tap is shut, at the second it is opened again."""


async def pulled(engine: Pouring, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
    """What `Engine.generate` promises, out of `pour`."""
    waiting: deque[Piece] = deque()
    news = asyncio.Event()
    tap = Tap()

    def take(piece: Piece) -> None:
        waiting.append(piece)
        news.set()
        if len(waiting) >= HIGH:
            tap.turn(shut=True)

    pouring = asyncio.create_task(engine.pour(model, prompt, prefix, take, tap))
    pouring.add_done_callback(lambda _: news.set())
    try:
        while True:
            news.clear()
            while waiting:
                yield waiting.popleft()
                if len(waiting) <= LOW:
                    tap.turn(shut=False)
            if pouring.done() and not waiting:
                yield pouring.result()
                return
            await news.wait()
    finally:
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)

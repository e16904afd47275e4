"""Any engine, made one that pours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, cast

from gpu_worker.engines import Engine, Finish, Piece, Prefix, Prompt, Tap


class Poured:
    """Gives what `engine.generate` yields, whatever that is, and gives nothing while the tap is shut."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.turned: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def pour(self, model: str, prompt: Prompt, prefix: Prefix, take: Callable[[Piece], None], tap: Tap) -> Finish:
        opened = asyncio.Event()

        def turn(shut: bool) -> None:
            self.turned.append(shut)
            opened.clear() if shut else opened.set()

        tap.on_turn = turn
        turn(tap.is_shut)
        async with aclosing(self._engine.generate(model, prompt, prefix)) as items:
            async for item in items:
                if isinstance(item, Finish):
                    return item
                await opened.wait()
                take(item)
        return cast(Finish, None)


def poured(engine: Any) -> Engine:
    return cast(Engine, Poured(engine))

"""Doing the same for many things at once, but not for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Thing = TypeVar("Thing")


async def abreast(limit: int, act: Callable[[Thing], Awaitable[None]], things: Iterable[Thing]) -> None:
    """`act` on every thing, at most `limit` at once. The first error ends the others and is raised as it is."""
    room = asyncio.Semaphore(limit)

    async def one(thing: Thing) -> None:
        async with room:
            await act(thing)

    failed: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for thing in things:
                group.create_task(one(thing))
    except BaseExceptionGroup as errors:
        failed = errors.exceptions[0]
    if failed is not None:
        raise failed

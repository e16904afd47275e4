"""A history that takes its time: what has ended is read when a test lets it be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from broker.node.history import History


def held_back(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """From now on no fresh viewer is told what has ended, until the event is set."""
    goes_on = asyncio.Event()
    finished: Callable[..., Awaitable[object]] = History.finished

    async def slow(self: History, *arguments: object) -> object:
        await goes_on.wait()
        return await finished(self, *arguments)

    monkeypatch.setattr(History, "finished", slow)
    return goes_on

"""A fault: one deliberate harm to one victim, which proves that it happened.

Every fault strikes an aim and looks at its victim. They are the same but in a control run, where the aim is a decoy:
then the proof has to fail, or it proves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from compose.chaos.answers import ANSWER_TIMEOUT, FAILED, Unanswered
from compose.chaos.whole import Process

LOOK_INTERVAL = 0.01


class DidNotHappen(Exception):
    """The victim shows no sign of the fault; the message says what was looked for."""


async def _nothing() -> None:
    return


@dataclass(frozen=True)
class Fault:
    """`strike` raises DidNotHappen where nothing is left to be hurt. `happened` returns the proof, in words, or raises
    it; `undo` is called once, whatever happened. `ends`: processes that end by it, and are started again."""

    victim: str
    strike: Callable[[], Awaitable[object]]
    happened: Callable[[], Awaitable[str]]
    undo: Callable[[], Awaitable[object]] = _nothing
    ends: tuple[Process, ...] = ()


async def shows(sign: Callable[[], str | None], what: str, timeout: float) -> str:
    """Look until `sign` gives a proof. Raises DidNotHappen, naming `what`, after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while (proof := sign()) is None:
        if loop.time() > deadline:
            raise DidNotHappen(f"{what} was not seen within {timeout:g} s")
        await asyncio.sleep(LOOK_INTERVAL)
    return proof


async def comes_true(sign: Callable[[], Awaitable[str | None]], what: str, timeout: float) -> str:
    """The same for a sign that has to be asked for; a question that is not answered is no sign.

    Nor is it the want of one: the time is over when one has been answered. Raises Unanswered where none ever is.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    answers, why = 0, ""
    while True:
        try:
            proof = await sign()
        except FAILED as error:
            why = repr(error)
        else:
            answers += 1
            if proof is not None:
                return proof
        if answers and loop.time() > deadline:
            raise DidNotHappen(f"{what} was not seen within {timeout:g} s")
        if loop.time() > deadline + ANSWER_TIMEOUT:
            raise Unanswered(f"{what} was asked for, and nobody answered: {why}")
        await asyncio.sleep(LOOK_INTERVAL)

"""What an engine says, believed only where it is an answer.

An engine is a foreign program, or the shell of one: whatever it yields or raises ends here as pieces of text that a
frame can hold and one `Finish`, or as `EngineFailed`. It must not know where the pieces go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import get_args

import structlog

from gpu_worker.engines import Engine, EngineFailed, Finish, Piece, Prefix, Prompt
from gpu_worker.engines.engine import FailureCode, FinishReason

PIECE_TEXT = 64 * 1024  # bytes of UTF-8: one piece is never cut, so it has to fit into a message, escaped as JSON
MESSAGE = 500  # characters kept of why an engine failed
MOST_TOKENS = 2**31

_REASONS = frozenset(get_args(FinishReason))
_CODES = frozenset(get_args(FailureCode))

log = structlog.get_logger("worker")


async def believed(engine: Engine, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
    """The engine's answer, each item checked; `Finish` is the last one. Raises EngineFailed for anything else that is
    said or raised (retryable: another attempt may do better).

    Closing it, or cancelling the task that pulls, closes the engine's generator.
    """
    finish: Finish | None = None
    try:
        async with aclosing(engine.generate(model, prompt, prefix)) as items:
            async for item in items:
                good = _checked(item)
                if isinstance(good, Finish):
                    finish = good
                    break
                yield good
    except EngineFailed as error:
        raise _said(error) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _broken("cancelled itself") from error  # nobody asked for it: taken for our own, it would end nothing
    except Exception as error:  # the safety net around foreign code: an answer breaks, and neither job nor worker
        if finish is None:
            raise _broken(f"raised {type(error).__name__}") from error
        log.error("worker.engine_not_closed", model=model, exc_info=error)
    if finish is None:
        raise _broken("ended without saying so")
    yield finish


def _checked(item: object) -> Piece | Finish:
    match item:
        case Piece(text=str(text), n=n, kind="token" | "reasoning") if _is_count(n) and n:
            if len(text) * 4 > PIECE_TEXT or not text.isascii():  # else there is nothing to find: this is the hot path
                _check_text(text)
            return item
        case Finish(finish_reason=str(reason), prompt_tokens=asked, completion_tokens=answered):
            if reason in _REASONS and _is_count(asked) and _is_count(answered):
                return item
    raise _broken(f"said what is no answer ({type(item).__name__})")


def _is_count(n: object) -> bool:
    return type(n) is int and 0 <= n <= MOST_TOKENS  # and no bool, which would be written as one


def _check_text(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise _broken("said what is no text") from None
    if size > PIECE_TEXT:
        raise _broken(f"said {size} bytes at once")


def _broken(what: str) -> EngineFailed:
    return EngineFailed("engine_failed", f"the engine {what}", retryable=True)


def _said(error: EngineFailed) -> EngineFailed:
    """The failure in words that a frame can hold."""
    code: FailureCode = error.code if error.code in _CODES else "engine_failed"
    message = str(error.message)[:MESSAGE].encode("utf-8", "replace").decode()
    return EngineFailed(code, message, retryable=bool(error.retryable))

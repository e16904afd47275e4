"""What an engine says, believed only where it is an answer.

An engine is a foreign program, or the shell of one: whatever it yields or raises ends here as pieces of text that a
frame can hold and one `Finish`, or as `EngineFailed`. It must not know where the pieces go.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import get_args

import structlog

from gpu_worker.bound import Bound
from gpu_worker.engines import Engine, EngineFailed, Enough, Finish, Piece, Pouring, Prefix, Prompt, Tap
from gpu_worker.engines.discretion import for_the_log, for_viewers
from gpu_worker.engines.engine import MOST_TOKENS, PIECE_TEXT, UNREADABLE, FailureCode, FinishReason

MESSAGE = 500  # characters kept of why an engine failed

_REASONS = frozenset(get_args(FinishReason))
_KINDS = frozenset({"token", "reasoning"})
_CODES = frozenset(get_args(FailureCode))

log = structlog.get_logger("worker")


async def believed(
    engine: Engine, model: str, prompt: Prompt, prefix: Prefix, bound: Bound
) -> AsyncGenerator[Piece | Finish, None]:
    """The engine's answer, each item checked; `Finish` is the last one. Raises EngineFailed for anything else that is
    said or raised (retryable: another attempt may do better). An engine that goes on beyond `bound` is closed there.

    Closing it, or cancelling the task that pulls, closes the engine's generator.
    """
    finish: Finish | None = None
    try:
        async with aclosing(engine.generate(model, prompt, prefix)) as items:
            async for item in items:
                _check(item)
                if isinstance(item, Finish):
                    finish = item
                    break
                if not bound.admits(item):
                    finish = _cut(model, bound)
                    break
                yield item
    except EngineFailed as error:
        raise _said(error) from error
    except asyncio.CancelledError as error:
        raise _uncalled_for(error) from error
    except Exception as error:  # the safety net around foreign code: an answer breaks, and neither job nor worker
        if finish is None:
            raise _broken(f"raised {type(error).__name__}") from error
        log.error("worker.engine_not_closed", model=model, exc_info=error)
    if finish is None:
        raise _broken("ended without saying so")
    yield finish


async def poured(
    engine: Pouring, model: str, prompt: Prompt, prefix: Prefix, bound: Bound, take: Callable[[Piece], None], tap: Tap
) -> Finish:
    """The same of an engine that pours: each piece is given to `take` once it was checked."""

    def checked(item: object) -> None:
        if not isinstance(item, Piece):
            raise _no_answer(item)
        _check(item)
        if not bound.admits(item):
            raise Enough
        take(item)

    try:
        finish: object = await engine.pour(model, prompt, prefix, checked, tap)
    except Enough:
        return _cut(model, bound)
    except EngineFailed as error:
        raise _said(error) from error
    except asyncio.CancelledError as error:
        raise _uncalled_for(error) from error
    except Exception as error:  # the safety net around foreign code, as above
        raise _broken(f"raised {type(error).__name__}") from error
    if not isinstance(finish, Finish):
        raise _no_answer(finish)
    _check(finish)
    return finish


def _cut(model: str, bound: Bound) -> Finish:
    """Only now that more was said: an engine that keeps to its bound says itself why it ends, and what it counted."""
    log.warning("worker.engine_cut", model=model, tokens=bound.tokens, size=bound.size)
    return Finish("length", 0, bound.tokens)


def _check(item: object) -> None:
    """Raises EngineFailed for what is no answer. By hand, not by `match`, which takes three times as long."""
    if isinstance(item, Piece):
        text, n = item.text, item.n
        if isinstance(text, str) and item.kind in _KINDS and _is_count(n) and n:
            if len(text) * 4 > PIECE_TEXT or not text.isascii():  # else there is nothing to find: this is the hot path
                _check_text(text)
            return
    elif (
        isinstance(item, Finish)
        and isinstance(item.finish_reason, str)
        and item.finish_reason in _REASONS
        and _is_count(item.prompt_tokens)
        and _is_count(item.completion_tokens)
    ):
        return
    raise _no_answer(item)


def _no_answer(item: object) -> EngineFailed:
    return _broken(f"said what is no answer ({type(item).__name__})")


def _uncalled_for(error: asyncio.CancelledError) -> BaseException:
    """Nobody asked for it: taken for our own, it would end nothing."""
    task = asyncio.current_task()
    return error if task is None or task.cancelling() else _broken("cancelled itself")


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
    return EngineFailed("engine_failed", f"the engine {what}", retryable=True, shown=UNREADABLE)


def _said(error: EngineFailed) -> EngineFailed:
    """The failure in words that a log and a frame can hold."""
    code: FailureCode = error.code if error.code in _CODES else "engine_failed"
    message, shown = for_the_log(str(error.message)), for_viewers(str(error.shown))
    retryable, after = bool(error.retryable), _seconds(error.retry_after)
    return EngineFailed(code, _short(message), retryable=retryable, shown=_short(shown), retry_after=after)


def _seconds(said: object) -> float:
    return float(said) if isinstance(said, int | float) and 0 <= said < math.inf else 0.0


def _short(words: str) -> str:
    return words[:MESSAGE].encode("utf-8", "replace").decode()

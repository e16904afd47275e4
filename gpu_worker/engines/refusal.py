"""What a server that speaks OpenAI's protocol means when it refuses, or fails while it answers. Pure.

Whose fault it is decides: of what is wrong with the request viewers hear the server's own words; what is between the
server and its operator (keys, models, redirects, breakdowns) is for the log, and viewers hear what kind of thing it is.
"""

from __future__ import annotations

from gpu_worker.engines.chunk import Error
from gpu_worker.engines.engine import EngineFailed
from gpu_worker.engines.refused import Refused

OVERLOADED = frozenset({429, 503, 529})
TOO_LONG = frozenset({"context_length_exceeded", "exceed_context_size_error"})  # the second is llama.cpp's

_OF_THE_REQUEST = frozenset({400, 413, 422})
_PASSING = frozenset({408, 409, 425})
_KEYS = frozenset({"invalid_api_key", "authentication_error", "permission_error"})
_UNPAID = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})  # OpenAI's, as 429
_BUSY = "the engine is overloaded"


def refused(error: Refused) -> EngineFailed:
    """Instead of an answer."""
    if _UNPAID & {error.kind, error.code}:
        return _meant(402, "", "", error.message)
    if error.status in OVERLOADED:
        words, after = f"{error.status}: {error.message}", error.retry_after
        return EngineFailed("overloaded", words, retryable=True, shown=_BUSY, retry_after=after)
    return _meant(error.status, error.kind, error.code, error.message)


def broke(error: Error) -> EngineFailed:
    """Within an answer, whose head promised one. Without a status among its words it may be anything."""
    code = str(error.code or "")
    if _UNPAID & {error.type, code}:
        return _meant(402, "", "", error.message or "no reason given")
    status = int(code) if len(code) == 3 and code.isdecimal() else 500
    if status in OVERLOADED:
        return EngineFailed("engine_failed", f"{status}: {error.message}", retryable=True, shown=_BUSY)
    return _meant(status, error.type or "", code, error.message or "no reason given")


def _meant(status: int, kind: str, code: str, message: str) -> EngineFailed:
    # vLLM has no code for it, only words: "This model's maximum context length is 2048 tokens. However, …".
    if code in TOO_LONG or kind in TOO_LONG or (status == 400 and "maximum context length" in message):
        return EngineFailed("context_length_exceeded", message, retryable=False)
    if kind in _KEYS or code in _KEYS:
        status = 401
    words, retryable = f"{status}: {message}", status >= 500 or status in _PASSING
    if status in _OF_THE_REQUEST:
        return EngineFailed("engine_failed", words, retryable=False)
    return EngineFailed("engine_failed", words, retryable=retryable, shown=_kind(status))


def _kind(status: int) -> str:
    match status:
        case 401 | 402 | 403 | 407:
            return "the engine does not accept this worker"
        case 404 | 405 | 410:
            return "the engine does not have what it was asked for"
        case _ if status >= 500:
            return "the engine failed"
        case _ if status >= 400:
            return "the engine refused"
        case _ if status >= 300:
            return "the engine is not where it was looked for"
        case _:
            return "the engine gave no answer"

"""One event of a streamed chat completion, as servers that speak OpenAI's protocol write it. Pure.

What is written as it should be is decoded in one step, `strict`; the rest is looked at field by field, `odd`: what says
nothing of the answer may be anything there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec


class Unreadable(ValueError):
    """It is no event of an answer, or what it says cannot be read."""


class Delta(msgspec.Struct, gc=False):
    """`reasoning_content` as vLLM, SGLang and DeepSeek have it, `reasoning` as OpenRouter and newer vLLM do."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct, gc=False):
    delta: Delta | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Error(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class Chunk(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Error | None = None


strict = msgspec.json.Decoder(Chunk).decode
"""Raises msgspec.DecodeError, UnicodeDecodeError and RecursionError."""


def odd(data: bytes) -> Chunk:
    """What `strict` refuses. Raises Unreadable."""
    if not data:
        return Chunk()
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"no JSON: {error}") from error
    if not isinstance(said, dict):
        raise Unreadable(f"a {type(said).__name__} instead of an event")
    choices = [_choice(one) for one in _list(said.get("choices"), "choices")]
    return Chunk(choices, _usage(said.get("usage")), _error(said.get("error")))


def _choice(said: object) -> Choice:
    if not isinstance(said, Mapping):
        raise Unreadable("a choice that is none")
    reason, delta = said.get("finish_reason"), said.get("delta")
    told = reason if isinstance(reason, str) else "stop" if reason else None
    if delta is None:
        return Choice(None, told)
    if not isinstance(delta, Mapping):
        raise Unreadable("a delta that is none")
    texts = (_text(delta.get(name)) for name in ("content", "reasoning_content", "reasoning"))
    return Choice(Delta(*texts), told)


def _text(said: object) -> str | None:
    if said is None or isinstance(said, str):
        return said
    raise Unreadable(f"a {type(said).__name__} instead of a text")


def _usage(said: object) -> Usage | None:
    """Best effort: an answer without it is whole."""
    if not isinstance(said, Mapping):
        return None
    asked, told = said.get("prompt_tokens"), said.get("completion_tokens")
    return Usage(asked if type(asked) is int else 0, told if type(told) is int else 0)


def _error(said: object) -> Error | None:
    if not said:
        return None
    if not isinstance(said, Mapping):
        return Error(said if isinstance(said, str) else "")
    message, kind, code = (said.get(name) for name in ("message", "type", "code"))
    return Error(
        message if isinstance(message, str) else "",
        kind if isinstance(kind, str) else None,
        code if isinstance(code, str | int) else None,
    )


def _list(said: object, what: str) -> list[Any]:
    if said is None:
        return []
    if not isinstance(said, list):
        raise Unreadable(f"{what} that are none")
    return said

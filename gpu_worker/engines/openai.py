"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, a router before them, a hosted API.

The worker is its client: one connection per generation, closed to cancel. What the protocol cannot say is a setting:
how a server goes on behind a prefix (`openai_resume`), and fields that one server knows and another refuses
(`openai_extra`).
"""

import asyncio
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, get_args
from urllib.parse import urlsplit

import msgspec
import structlog

from gpu_worker.engines import http
from gpu_worker.engines.chunk import Chunk, Error, Odd, Unreadable, strict
from gpu_worker.engines.discretion import HIDDEN, for_the_log
from gpu_worker.engines.edge import Edges
from gpu_worker.engines.engine import (
    BROKE_OFF,
    DRY,
    MOST_TOKENS,
    PIECE_TEXT,
    EngineFailed,
    EngineSettings,
    EngineUnavailable,
    Enough,
    Finish,
    FinishReason,
    Kind,
    ModelCard,
    Piece,
    Prefix,
    Prompt,
    Say,
    Tap,
    unsaid,
)
from gpu_worker.engines.failure import translated
from gpu_worker.engines.http import Answer, Broken, Endpoint, Unreachable
from gpu_worker.engines.pulled import pulled
from gpu_worker.engines.refusal import OVERLOADED, broke, refused
from gpu_worker.engines.refused import Refused

NAME = "openai"
WHO = "the server"
END = b"[DONE]"
RETRY_PAUSE = 0.5  # seconds between two tries to reach a server that is still starting
PATIENCE = 5.0  # seconds that it may take to answer one of them before that is said
END_TIMEOUT = 5.0  # seconds that what may follow the finish reason is waited for: the usage, the end
TOGETHER = 4096  # characters of what came together that are one piece
SECRET = 4  # characters of a key that is one, not a word to fill the field
LONGEST = PIECE_TEXT // 4  # characters of a piece, whatever they are

_ABORTED = frozenset({"abort", "aborted", "cancelled", "error", "insufficient_system_resource"})
_TOOLS = frozenset({"tool_calls", "function_call"})
_REASONS: frozenset[str] = frozenset(get_args(FinishReason))

log = structlog.get_logger("worker")


class _Model(msgspec.Struct):
    """`max_model_len`: vLLM's and SGLang's word for the context length; others say nothing."""

    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


_models = msgspec.json.Decoder(_Models)


class OpenAIEngine:
    """At most `slots` generations of each model at a time, the next is refused with `overloaded`.

    A piece is a token unless the server counts itself: `openai_extra={"stream_options": {"include_usage": true,
    "continuous_usage_stats": true}}` makes vLLM and SGLang tell the exact number with each.
    """

    def __init__(self, settings: EngineSettings) -> None:
        try:
            where = urlsplit(settings.openai_url)
            port = where.port
        except ValueError:  # a port, or an address in brackets, that is none
            raise _nowhere() from None
        if where.scheme not in ("http", "https") or not where.hostname:
            raise _nowhere()
        port = port or (443 if where.scheme == "https" else 80)
        self._endpoint = Endpoint(where.hostname, port, settings.openai_key, tls=where.scheme == "https")
        self._path = where.path.rstrip("/")
        self._settings = settings
        self._cards: tuple[ModelCard, ...] = ()
        self._running: weakref.WeakSet[Answer] = weakref.WeakSet()
        self._edges: Edges | None = None
        self._busy: Counter[str] = Counter()  # by model
        self._closed = False

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        return self._cards

    async def start(self, say: Say = unsaid) -> None:
        """Asks which models there are, until the server answers or `start_timeout` is over."""
        why = "no answer"

        def wait_for(what: str) -> None:
            nonlocal why
            why = what
            say(self._failed(f"it does not answer yet: {why}").message)

        try:
            async with asyncio.timeout(self._settings.start_timeout):
                while not self._cards:
                    if (listed := await self._listed(wait_for)) is not None:
                        self._cards = self._announced(listed)
                        break
                    await asyncio.sleep(RETRY_PAUSE)
        except TimeoutError as error:
            raise self._failed(f"not there after {self._settings.start_timeout:g} s: {why}") from error
        if Edges.available and not self._endpoint.tls:
            self._edges = Edges()

    async def _listed(self, wait_for: Say) -> list[_Model] | None:
        """What models it has; None, and `wait_for` told why, where it may say so later. Raises EngineFailed."""
        late = asyncio.get_running_loop().call_later(PATIENCE, wait_for, f"nothing within {PATIENCE:g} s")
        try:
            listed = _models.decode(await http.call(self._endpoint, "GET", f"{self._path}/models")).data
            if listed:
                return listed
            wait_for("it has no model")  # as routers say whose workers are still starting
        except (Unreachable, Broken) as error:
            wait_for(str(error))
        except Refused as error:
            if error.status < 500 and error.status not in OVERLOADED:
                raise self._failed(f"it refuses to list its models: {error}") from error
            wait_for(str(error))
        except (ValueError, RecursionError) as error:
            raise self._failed(f"its list of models is none: {error}") from error
        finally:
            late.cancel()
        return None

    async def close(self) -> None:
        self._closed = True
        for answer in list(self._running):
            answer.leave()
        if self._edges is not None:
            self._edges.close()

    def children(self) -> list[tuple[str, int]]:
        return []  # the server is somebody else's

    def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
        return pulled(self, model, prompt, prefix)

    async def pour(self, model: str, prompt: Prompt, prefix: Prefix, take: Callable[[Piece], None], tap: Tap) -> Finish:
        if self._closed:
            raise EngineFailed("engine_failed", "the engine is closed", retryable=True)
        if self._busy[model] >= self._settings.slots:
            message = f"{self._settings.slots} generations of {model} are running"
            raise EngineFailed("overloaded", message, retryable=True)
        most = MOST_TOKENS if prompt.max_tokens is None else prompt.max_tokens - prefix.tokens
        if most <= 0:
            return Finish("length", 0, prefix.tokens)
        body = self._request(model, prompt, prefix)
        self._busy[model] += 1
        try:
            return await self._hear(body, prefix, most, take, tap)
        except EngineFailed as error:
            raise self._without_key(error) from error
        finally:
            self._busy[model] -= 1

    async def _hear(
        self, body: dict[str, Any], prefix: Prefix, most: int, take: Callable[[Piece], None], tap: Tap
    ) -> Finish:
        reading = _Reading(take, most)
        try:
            with (
                translated(WHO, refused),
                await http.ask(
                    self._endpoint,
                    "POST",
                    f"{self._path}/chat/completions",
                    body,
                    silence_timeout=self._settings.stall_timeout,
                    edges=self._edges,
                ) as answer,
            ):
                self._running.add(answer)
                tap.on_turn = answer.hold
                answer.hold(tap.is_shut)
                tap.source = answer.source or DRY
                reading.on_reason = lambda: answer.hurry(END_TIMEOUT)
                try:
                    if answer.streams:
                        await answer.pour(reading.take, tap.on_unread)
                    else:
                        reading.document(await answer.whole())
                except asyncio.CancelledError:  # what it had said before is heard
                    with suppress(EngineFailed, Unreadable, Enough):
                        reading.take(answer.left())
                    raise
                except (Broken, TimeoutError) as error:
                    if reading.reason is None:
                        raise
                    log.info("engine.broke_off_behind_its_end", error=str(error))
        finally:
            reading.on_reason = _nothing  # else the two would keep each other
            tap.source = DRY
        if reading.reason is None:
            message = "the answer ended without an end"
            raise EngineFailed("engine_failed", message, retryable=True, shown=BROKE_OFF)
        asked = max(0, reading.asked - (prefix.spoken if prefix.text else 0))  # the prefix is told as a message
        return Finish(_reason(reading.reason), asked, prefix.tokens + reading.told)

    def _request(self, model: str, prompt: Prompt, prefix: Prefix) -> dict[str, Any]:
        """The body. Raises EngineFailed where this server cannot go on behind what was said already."""
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if prompt.max_tokens is not None:
            body["max_tokens"] = prompt.max_tokens - prefix.tokens
        if prompt.temperature is not None:
            body["temperature"] = prompt.temperature
        if prompt.stop:
            body["stop"] = list(prompt.stop)
        if prompt.seed is not None:
            body["seed"] = prompt.seed
        if prefix.text:
            match self._settings.openai_resume:
                case "refuse":
                    message = "this server cannot go on with an answer that has begun"
                    raise EngineFailed("engine_failed", message, retryable=False)
                case "continue":
                    body |= {"continue_final_message": True, "add_generation_prompt": False}
            messages.append({"role": "assistant", "content": prefix.text})
        return body | dict(self._settings.openai_extra)

    def _announced(self, listed: list[_Model]) -> tuple[ModelCard, ...]:
        """The models to serve: those that were chosen, or all. Raises EngineFailed if one of them is missing."""
        s = self._settings
        chosen = s.openai_models or tuple(one.id for one in listed)
        there = {one.id: one for one in listed}
        if missing := [id for id in chosen if id not in there]:
            raise self._failed(f"it has no model {', '.join(missing)}, but {', '.join(there) or 'none'}")
        return tuple(
            ModelCard(id, there[id].max_model_len or s.context_length, s.slots, s.queue_limit, NAME) for id in chosen
        )

    def _failed(self, why: str) -> EngineFailed:
        message = for_the_log(f"the server at {self._settings.openai_url}: {why}")
        return self._without_key(EngineFailed("engine_failed", message, retryable=True))

    def _without_key(self, error: EngineFailed) -> EngineFailed:
        """Servers say the key that they refuse."""
        key = self._endpoint.key
        if len(key) < SECRET or key not in error.message + error.shown:
            return error
        message, shown = (words.replace(key, HIDDEN) for words in (error.message, error.shown))
        return EngineFailed(error.code, message, retryable=error.retryable, shown=shown, retry_after=error.retry_after)


class _Reading:
    """The chunks of one answer, and what they said so far. Once the reason is known the answer is whole: nothing that
    follows can cost it. `on_reason`: called then. `most`: tokens that were asked for, behind which a piece ends.
    """

    def __init__(self, take: Callable[[Piece], None], most: int = MOST_TOKENS) -> None:
        self.reason: str | None = None
        self.told = 0  # tokens
        self.asked = 0
        self.on_reason: Callable[[], object] = _nothing
        self._take = take
        self._most = most
        self._odd = Odd()
        self._decode: Callable[[bytes], Chunk] = strict
        self._kind: Kind = "token"  # of the piece that is being put together ...
        self._text = ""
        self._n = 0  # ... and its tokens

    def take(self, payloads: list[bytes]) -> bool:
        """What came together; True: the end is there. Raises EngineFailed, Unreadable, and as whoever takes the pieces:
        what came before the failure has been given then.
        """
        try:
            for data in payloads:
                if data == END:
                    return True
                self._read(data)
        finally:
            if self._n:
                self._give()
        return False

    def document(self, data: bytes) -> None:
        """All of it, from a server that does not stream. Raises as `take`."""
        self._decode = _not_as_usual
        self.take([data])

    def _read(self, data: bytes) -> None:
        try:
            chunk = self._decode(data)
        except (ValueError, RecursionError):
            chunk = self._oddly(data)
        else:
            if not chunk.choices:
                chunk = self._oddly(data)
        if chunk.error is not None:
            self._fail(chunk.error)
        usage, counted = chunk.usage, 0
        if usage is not None and usage.completion_tokens <= MOST_TOKENS:  # else it cannot count
            counted = usage.completion_tokens
        for choice in chunk.choices:
            if choice.index:  # of several answers the first one is it
                continue
            if (delta := choice.delta) is not None:
                if thought := delta.reasoning_content or delta.reasoning:
                    # Of what is counted together the text behind it is a token at least.
                    self._hear("reasoning", thought, counted - 1 if delta.content else counted)
                if text := delta.content:
                    self._hear("token", text, counted)
                elif (delta.tool_calls or delta.function_call) and self.reason is None:
                    raise _no_tools()
                elif delta.refusal:
                    self._hear("token", delta.refusal, counted)
            if choice.finish_reason:
                self._end(choice.finish_reason)
        if usage is not None:
            if 0 < usage.prompt_tokens <= MOST_TOKENS:
                self.asked = usage.prompt_tokens
            self.told = max(self.told, counted)

    def _oddly(self, data: bytes) -> Chunk:
        """What is not said as usual."""
        try:
            chunk = self._odd.read(data)
        except Unreadable as error:
            if b"\n" in data:  # events that nothing parts
                for line in data.split(b"\n"):
                    self._read(line)
            elif self.reason is None:
                raise
            else:
                log.info("engine.unreadable_behind_its_end", error=str(error))
            return Chunk()
        self._decode = _not_as_usual if self._odd.half else strict
        return chunk

    def _fail(self, error: Error) -> None:
        if self.reason is None:
            raise broke(error)
        log.info("engine.failed_behind_its_end", error=for_the_log(error.message))

    def _end(self, reason: str) -> None:
        if self.reason is not None:
            return
        if reason in _TOOLS:
            raise _no_tools()
        if reason in _ABORTED:  # vLLM's, SGLang's, OpenRouter's and DeepSeek's words for an answer that is cut short
            raise EngineFailed("engine_failed", f"the answer ended with {reason!r}", retryable=True, shown=BROKE_OFF)
        self.reason = reason
        self.on_reason()

    def _hear(self, kind: Kind, text: str, counted: int) -> None:
        """`counted`: the tokens so far as the server counts them, 0 where it does not: one a chunk then."""
        n = counted - self.told
        if n < 1:
            n = 1
        self.told += n
        if self._n:
            if kind == self._kind and len(self._text) + len(text) <= TOGETHER and self.told <= self._most:
                self._text += text
                self._n += n
                return
            self._give()
        self._kind, self._text, self._n = kind, text, n

    def _give(self) -> None:
        text, n, self._n = self._text, self._n, 0
        if len(text) > LONGEST:
            text, n = self._cut(text, n)
        self._take(Piece(text, n, self._kind))

    def _cut(self, text: str, n: int) -> tuple[str, int]:
        """Gives all of what is too long for one piece but its last part. A part is a token at least."""
        *parts, last = [text[at : at + LONGEST] for at in range(0, len(text), LONGEST)]
        if n <= len(parts):
            self.told += len(parts) + 1 - n
            n = len(parts) + 1
        for part in parts:
            self._take(Piece(part, 1, self._kind))
        return last, n - len(parts)


def _nowhere() -> EngineUnavailable:
    return EngineUnavailable(f"engine {NAME!r} needs to know its server: OKOME_WORKER_OPENAI_URL=http://host:port/v1")


def _not_as_usual(data: bytes) -> Chunk:
    raise Unreadable("it has to be looked at field by field")


def _no_tools() -> EngineFailed:
    return EngineFailed("unsupported", "the model called a tool, and tools are not supported", retryable=False)


def _nothing() -> None:
    pass


def _reason(said: str) -> FinishReason:
    return said if said in _REASONS else "stop"  # type: ignore[return-value]  # just looked up

"""What a worker asks of an engine, and what an engine answers: the whole of what the two know of each other.

An engine knows nothing of frames, fences, epochs or NATS; a worker knows nothing of models, slots or child processes.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]
FailureCode = Literal["engine_failed", "context_length_exceeded", "overloaded", "unsupported"]
Kind = Literal["token", "reasoning"]
Resume = Literal["continue", "prefill", "refuse"]

MOST_TOKENS = 2**31
"""What is counted as more is no count."""
PIECE_TEXT = 64 * 1024
"""Bytes of a piece's UTF-8: one piece is never cut, so it has to fit into a message, escaped as JSON."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine is asked, complete and validated.

    messages: the whole context, the last one is the user's turn. max_tokens: bound on the whole answer, over all
    epochs; None leaves it to the engine (scripted: the script's length; smollm2: what the context still holds).
    temperature: None = the engine's default.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """What the log already holds of this answer when a worker takes over.

    pieces: its text as it was stored, frame by frame: where frames end, tokens ended, which the text alone does not
    tell. tokens: how many that is, as the offsets count them; spoken: how many of them are this text, the others are
    reasoning.
    """

    pieces: tuple[str, ...] = ()
    tokens: int = 0
    spoken: int = 0

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Piece(msgspec.Struct, frozen=True, gc=False):
    """`n` tokens of text, n ≥ 1, valid UTF-8, never half a character."""

    text: str
    n: int
    kind: Kind = "token"


@dataclass(frozen=True, slots=True)
class Finish:
    """The last item of every answer that ended. completion_tokens counts all epochs and, where the engine does, the
    end-of-turn token (which has no text, so it may exceed the last offset by one).
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as the worker announces it. context_length in tokens, prompt and answer together; slots: generations
    decoded at once; queue_limit: how many more are admitted for its worker, which wait for a slot;
    default_max_tokens: the bound where a request names none, None for no bound.
    """

    id: str
    context_length: int
    slots: int
    queue_limit: int
    engine: str
    default_max_tokens: int | None = 1024


BROKE_OFF = "the engine's answer broke off"
UNREADABLE = "the engine's answer could not be read"
"""What viewers may be told of failures that are anybody's."""


class EngineFailed(Exception):
    """The answer broke: it did not end. retryable says whether the same prompt with the prefix so far may succeed
    here or elsewhere.

    message is for the log. shown is what viewers may be told, where it matters to them: without it the message of what
    is no use to try again, and nothing of the rest. retry_after: seconds in which trying again is no use, as the engine
    says.
    """

    def __init__(
        self, code: FailureCode, message: str, *, retryable: bool, shown: str = "", retry_after: float = 0.0
    ) -> None:
        super().__init__(message)
        self.code: FailureCode = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after
        self.shown = shown or ("" if retryable else message)


class Enough(Exception):
    """Whoever takes the pieces wants no more of them. No failure: the engine stops, and lets it through."""


class EngineUnavailable(Exception):
    """There is no such engine here. The message says what to install or to choose."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an operator may choose. Times in seconds.

    threads: of the model's computation. On two cores one thread gives 82 tok/s with half the CPU where two give
    110–128 alone but fall to a third as soon as other processes share the cores. context_length: per slot. batch:
    prompt tokens per step, see smollm2_child. cache_prompt: what a slot holds of a prompt is used again; without it
    every answer is computed from its first token on, as by a worker that never saw the session.

    openai_url: of the server, up to and with its `/v1`. openai_models: those to serve, all that it has if empty.
    openai_resume: how it is asked to go on with an answer that has begun: `continue` says so (vLLM, SGLang), `prefill`
    only ends the messages with it (llama.cpp, DeepSeek), `refuse` where neither works. openai_extra: fields of every
    request, over our own.
    """

    threads: int = 1
    slots: int = 4
    context_length: int = 2048
    queue_limit: int = 16
    batch: int = 32
    cache_prompt: bool = True
    start_timeout: float = 60.0
    stall_timeout: float = 120.0
    health_interval: float = 2.0
    health_timeout: float = 10.0
    scripted_slots: int = 10_000
    openai_url: str = ""
    openai_key: str = field(default="", repr=False)
    openai_models: tuple[str, ...] = ()
    openai_resume: Resume = "continue"
    openai_extra: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Where an engine's pieces are that came and were left. `unread`: there may be some."""

    @property
    def unread(self) -> bool: ...

    def draw(self) -> bool:
        """Give some of them, in one breath; True: more are there already."""


class _Dry:
    unread = False

    def draw(self) -> bool:
        return False


DRY: Source = _Dry()
"""Of an engine that gives everything as it comes."""


class Tap:
    """Whether pieces may come, for whoever takes them to say. `on_turn` is the engine's: told of every change.

    With `on_unread` set, an engine that can leave what comes where it is does so: it says once that something came, and
    its `source` gives it when it is asked. Several pieces cost little more than one then.
    """

    __slots__ = ("is_shut", "on_turn", "on_unread", "source")

    def __init__(self) -> None:
        self.is_shut = False
        self.on_turn: Callable[[bool], None] = lambda is_shut: None
        self.on_unread: Callable[[], None] | None = None
        self.source = DRY

    def turn(self, *, shut: bool) -> None:
        if shut is not self.is_shut:
            self.is_shut = shut
            self.on_turn(shut)


Say = Callable[[str], None]
"""Told what an engine waits for, in words for its operator. It may be told the same again."""


def unsaid(why: str) -> None:
    """Of whoever does not want to know."""


class Engine(Protocol):
    """An engine, from `start` to `close`."""

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """The models it serves."""

    async def start(self, say: Say = unsaid) -> None:
        """Ready to generate when it returns. Has its own deadline; `say` hears what takes long. Raises EngineFailed."""

    async def close(self) -> None:
        """Ends everything the engine started; running generations raise EngineFailed. Idempotent."""

    def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
        """The answer from `prefix` on; Finish is the last item. Raises EngineFailed.

        Not pulling pauses it. `aclose()`, or cancelling the task that pulls, cancels decoding and frees its slot;
        nothing already yielded is lost, nothing else was kept.
        """

    def children(self) -> list[tuple[str, int]]:
        """(id, pid) of the processes it runs now."""


@runtime_checkable
class Pouring(Protocol):
    """An engine that can also hand on its pieces as they come, without a task to wake for each."""

    async def pour(self, model: str, prompt: Prompt, prefix: Prefix, take: Callable[[Piece], None], tap: Tap) -> Finish:
        """As `generate`: every piece is given to `take`, the Finish returned. Raises EngineFailed, or as `take`, which
        raises Enough where the answer has said all that it may.

        While `tap` is shut nothing more is given: at most what came in the same breath. Cancelling it is `aclose()`.
        """

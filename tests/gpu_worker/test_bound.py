"""An engine that does not keep to what it was asked: its answer ends at the bound, and so does its work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from broker.bus.frames import ATTEMPT, DONE, REASONING, START, TOKEN, USAGE, encode_frame, encode_tokens
from broker.bus.log import store
from gpu_worker import believed
from gpu_worker.bound import Bound
from gpu_worker.engines import (
    Engine,
    EngineFailed,
    EngineSettings,
    Finish,
    Message,
    Piece,
    Pouring,
    Prefix,
    Prompt,
    Tap,
    create,
)
from gpu_worker.engines.openai import OpenAIEngine
from tests.gpu_worker.bed import DEADLINE, SID, Bed
from tests.gpu_worker.pouring import poured
from tests.gpu_worker.test_believed import Strange

HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: "


class Endless(Strange):
    """Says the same without end; `broken_at`: it breaks once, behind so many tokens."""

    def __init__(self, piece: Piece, broken_at: int = 0) -> None:
        super().__init__()
        self.piece = piece
        self.broken_at = broken_at

    async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Any, None]:
        tokens = prefix.tokens
        try:
            while True:
                if self.broken_at and tokens >= self.broken_at:
                    self.broken_at = 0
                    raise EngineFailed("engine_failed", "it breaks", retryable=True)
                yield self.piece
                tokens += self.piece.n
                await asyncio.sleep(0)
        finally:
            self.closed += 1


@pytest.fixture(params=["asked", "told"])
def way(request: pytest.FixtureRequest) -> Callable[[Any], Engine]:
    """An engine is asked for its pieces, or tells them."""
    return poured if request.param == "told" else lambda engine: cast(Engine, engine)


async def hear(engine: Any, bound: Bound) -> tuple[list[Piece], Finish]:
    heard: list[Piece] = []
    prompt = Prompt((Message("user", "x"),), bound.max_tokens)
    async with asyncio.timeout(DEADLINE):
        if isinstance(engine, Pouring):
            return heard, await believed.poured(engine, "m", prompt, Prefix(), bound, heard.append, Tap())
        async for item in believed.believed(cast(Engine, engine), "m", prompt, Prefix(), bound):
            if isinstance(item, Finish):
                return heard, item
            heard.append(item)
    raise AssertionError("it did not end")


@pytest.mark.parametrize(
    ("piece", "bound", "pieces"),
    [
        (Piece("a", 1), (5, 1000), 5),
        (Piece("a", 1, "reasoning"), (5, 1000), 5),
        (Piece("abc", 3), (5, 1000), 2),  # it is not cut
        (Piece("a", 1), (5, 1000, 3), 2),
        (Piece("a", 1), (None, 10), 10),
        (Piece("é", 1, "reasoning"), (None, 10), 5),
        (Piece("a", 1), (None, 10, 0, 10), 0),
    ],
)
async def test_an_engine_that_goes_on_beyond_its_bound_is_closed_there(
    way: Callable[[Any], Engine], piece: Piece, bound: tuple[Any, ...], pieces: int
) -> None:
    engine, left = Endless(piece), Bound(*bound)
    said_before = left.tokens
    heard, finish = await hear(way(engine), left)
    assert heard == [piece] * pieces
    assert finish == Finish("length", 0, said_before + pieces * piece.n)
    assert engine.closed == 1


async def test_an_engine_that_keeps_to_its_bound_says_itself_how_it_ends(way: Callable[[Any], Engine]) -> None:
    items = [Piece("a", 1), Piece("b", 1), Finish("stop", 7, 3)]
    heard, finish = await hear(way(Strange(*items)), Bound(2, 2))
    assert [*heard, finish] == items


# -- in the worker -----------------------------------------------------------------------------------------------------


async def test_max_tokens_ends_an_answer_whose_engine_would_not_and_counts_over_its_attempts(
    bed: Bed, way: Callable[[Any], Engine]
) -> None:
    engine = Endless(Piece("a", 1), broken_at=3)
    async with bed.worker("w1", way(engine)):
        await bed.enqueue(await bed.ask("g1", [], model="strange", enqueue=False, request={"max_tokens": 5}))
        end = await bed.ended("g1")
        await bed.no_jobs_left()
    assert (end.type, end.fields()["finish_reason"], bed.text("g1")) == (DONE, "length", "aaaaa")
    assert bed.types("g1").count(ATTEMPT) == 1
    assert [f.fields()["completion_tokens"] for f in bed.of("g1") if f.type == USAGE] == [5]
    assert engine.closed == 2


async def test_an_answer_without_max_tokens_ends_at_the_workers_limit(bed: Bed, way: Callable[[Any], Engine]) -> None:
    """Whatever was said before a takeover counts, reasoning too."""
    start = {"epoch": 1, "model": "strange", "worker": "dead", "input": [], "t": 0}
    subject, said = f"tok.00.{SID}", ((REASONING, "ö" * 200), (TOKEN, "a" * 200))
    end = await store(bed.bus, subject, encode_frame(START, "g1", 1, "dead0000", 0, 0, 0, start), expect_last=0)
    for offset, (kind, words) in enumerate(said):
        frame = encode_tokens(kind, "g1", 1, "dead0000", end, offset, 1, words)
        end = await store(bed.bus, subject, frame, expect_last=end)
    async with bed.worker("w1", way(Endless(Piece("b" * 100, 1))), answer_limit=1024):
        job = await bed.ask("g1", [], model="strange", after=0, enqueue=False, request={"max_tokens": 0})
        await bed.enqueue(job)
        terminal = await bed.ended("g1")
    assert (terminal.type, terminal.fields()["finish_reason"]) == (DONE, "length")
    assert bed.text("g1") == "a" * 200 + "b" * 500, "1 024 bytes, and the piece that goes beyond them"


# -- a server that speaks OpenAI's protocol ----------------------------------------------------------------------------


@asynccontextmanager
async def writing(*events: object, together: int) -> AsyncIterator[tuple[OpenAIEngine, asyncio.Event]]:
    """An engine whose server writes these events, the last of them `together` times at once and without end; the other
    is set when nobody reads any more."""
    left = asyncio.Event()
    first = b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events[:-1])
    rest = b"data: %s\n\n" % json.dumps(events[-1]).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/models " in await reader.readuntil(b"\r\n\r\n"):
            writer.write(HEAD + b'application/json\r\n\r\n{"data": [{"id": "m"}]}')
        else:
            writer.write(HEAD + b"text/event-stream\r\n\r\n" + first)
            try:
                while True:
                    writer.write(rest * together)
                    await writer.drain()
                    await asyncio.sleep(0)
            except ConnectionError:
                left.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        made = create("openai", EngineSettings(openai_url=url, start_timeout=DEADLINE))
        assert isinstance(made, OpenAIEngine)
        try:
            await made.start()
            yield made, left
        finally:
            await made.close()


def delta(**fields: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


@pytest.mark.parametrize("together", [1, 1000])
async def test_a_server_that_ignores_max_tokens_is_left_at_exactly_so_many(bed: Bed, together: int) -> None:
    """Also where very many came in one read."""
    async with (
        writing(delta(reasoning="hm"), delta(content="a"), together=together) as (engine, left),
        bed.worker("w1", engine),
        asyncio.timeout(DEADLINE),
    ):
        await bed.enqueue(await bed.ask("g1", [], model="m", enqueue=False, request={"max_tokens": 5}))
        end = await bed.ended("g1")
        await left.wait()
        await bed.no_jobs_left()
    assert (end.type, end.fields()["finish_reason"], end.offset) == (DONE, "length", 5)
    assert bed.text("g1") == "aaaa"


async def test_a_thought_and_a_text_that_are_counted_together_are_both_within_the_bound() -> None:
    """As a server says them that does not stream, or that parts them itself."""
    both = {
        **delta(reasoning="hm", content="a"),
        "usage": {"prompt_tokens": 1, "completion_tokens": 5},
    }
    async with writing(both, delta(content="b"), together=1) as (engine, left), asyncio.timeout(DEADLINE):
        heard, finish = await hear(engine, Bound(5, 1000))
        await left.wait()
    assert heard == [Piece("hm", 4, "reasoning"), Piece("a", 1)]
    assert finish == Finish("length", 0, 5)

"""Engines that say much at once and go, through everything that is between their bytes and the log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from broker.bus.frames import REASONING, TOKEN, Frame
from gpu_worker.believed import poured
from gpu_worker.bound import Bound
from gpu_worker.cadence import Cadence
from gpu_worker.engines import EngineFailed, EngineSettings, Finish, Message, Piece, Prefix, Prompt, Tap, create
from gpu_worker.engines.edge import READ
from gpu_worker.engines.http import HIGH
from gpu_worker.engines.openai import OpenAIEngine
from gpu_worker.publishing import Publishing
from tests.gpu_worker.slow import STARTED, Slow, publisher_on

DEADLINE = 30.0
STALL = 2.0

Say = Callable[[asyncio.StreamWriter], Awaitable[object]]


@asynccontextmanager
async def engine(say: Say) -> AsyncIterator[OpenAIEngine]:
    """One whose server answers every question so, and closes then."""
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with suppress(ConnectionError):
            asked = await reader.readuntil(b"\r\n\r\n")
            if b"/models" in asked:
                body = b'{"data":[{"id":"m"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            else:
                await say(writer)
            await writer.drain()
        with suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    async with asyncio.timeout(DEADLINE), await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        made = create("openai", EngineSettings(openai_url=url, slots=1000, stall_timeout=STALL))
        assert isinstance(made, OpenAIEngine)
        await made.start()
        try:
            yield made
        finally:
            await made.close()
            await asyncio.gather(*filter(None, serving))


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def chunk(index: int, kind: str = "content", padding: int = 150) -> bytes:
    said: dict[str, object] = {"choices": [{"delta": {kind: f"{index} "}}]}
    event = b"data: %s\n\n" % msgspec.json.encode(said | ({"id": "x" * padding} if padding else {}))
    return b"%x\r\n%s\r\n" % (len(event), event)


LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
STOP = b"%x\r\n%s\r\n" % (len(LAST), LAST)


class Answered:
    """One answer, from the engine to the log."""

    def __init__(self, publishing: Publishing) -> None:
        self.said: list[str] = []
        self.publisher = publisher_on(publishing)

    async def play(self, made: OpenAIEngine) -> Finish:
        """Raises EngineFailed. What was said is in the log when it returns."""
        tap, bound = Tap(), Bound(None, 1024 * 1024)

        def take(piece: Piece) -> None:
            self.said += piece.text.split()
            self.publisher.offer(piece.kind, piece.text, piece.n)

        self.publisher.say(STARTED)
        self.publisher.follow(tap)
        try:
            return await poured(made, "m", Prompt((Message("user", "go"),)), Prefix(), bound, take, tap)
        finally:
            self.publisher.unfollow()
            await self.publisher.write()
            await self.publisher.close()


@pytest.fixture
async def log(slow: Slow) -> AsyncIterator[Slow]:
    """It answers soon, everything in its order."""

    async def answer() -> None:
        seq = 0
        while True:
            await slow.news.wait()
            slow.news.clear()
            await asyncio.sleep(random.choice([0, 0, 0.001, 0.01]))
            while slow.unanswered:
                seq += 1
                slow.answer(seq)

    answering = asyncio.create_task(answer())
    yield slow
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)


def stored(slow: Slow, kind: str = TOKEN) -> tuple[list[str], int]:
    """The text that is in the log, in its order, and how many tokens its frames count."""
    frames: list[Frame] = [frame for _, frame in slow.sent if frame.type == kind]
    texts = [msgspec.json.decode(frame.data)["text"] for frame in frames]
    return "".join(texts).split(), sum(frame.n for frame in frames)


def burst(tokens: int, kind: str = "content", padding: int = 150) -> bytes:
    return b"".join(chunk(index, kind, padding) for index in range(tokens))


@pytest.mark.parametrize("interval", [0.0, 0.2])
@pytest.mark.parametrize("tokens", [300, 3000])
async def test_all_that_was_said_at_once_before_a_hang_up_is_in_the_log_in_its_order(
    log: Slow, tokens: int, interval: float
) -> None:
    """Several reads, each of which makes room for a frame and so for the next read."""

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(0))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"".join(chunk(index) for index in range(1, tokens)) + STOP + END)

    assert len(burst(tokens)) > 3 * READ
    async with engine(say) as made:
        answered = Answered(Publishing(log, cadence=Cadence(interval)))
        finish = await answered.play(made)
    want = [str(index) for index in range(tokens)]
    assert answered.said == want
    assert stored(log) == (want, tokens)
    assert finish.finish_reason == "stop"


async def test_words_behind_thoughts_in_one_burst_keep_their_order(log: Slow) -> None:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + burst(100, "reasoning_content") + burst(300) + STOP + END)

    async with engine(say) as made:
        answered = Answered(Publishing(log))
        await answered.play(made)
    assert answered.said == [str(index) for tokens in (100, 300) for index in range(tokens)]
    assert stored(log, REASONING) == ([str(index) for index in range(100)], 100)
    assert stored(log) == ([str(index) for index in range(300)], 300)


@pytest.mark.parametrize("edges", [True, False])
async def test_many_short_tokens_in_one_read_do_not_stop_the_next_ones(
    log: Slow, edges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than may wait where nobody takes them. Left unread they would be no silence, and it would hang."""
    if not edges:
        monkeypatch.setattr("gpu_worker.engines.edge.Edges.available", False)

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        await writer.drain()
        await asyncio.sleep(0.05)
        assert len(burst(HIGH + 1, padding=0)) < READ
        writer.write(burst(300, padding=0))
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(burst(300, padding=0) + STOP + END)
        await writer.drain()
        await asyncio.sleep(0.5)  # and does not hang up yet

    async with engine(say) as made:
        answered = Answered(Publishing(log))
        await answered.play(made)
    assert stored(log)[1] == 600


async def test_an_engine_that_fails_in_the_middle_of_a_burst_has_failed(log: Slow) -> None:
    async def say(writer: asyncio.StreamWriter) -> None:
        error = b'data: {"error":{"message":"boom"}}\n\n'
        writer.write(HEAD + burst(300) + b"%x\r\n%s\r\n" % (len(error), error) + burst(300) + STOP + END)

    async with engine(say) as made:
        with pytest.raises(EngineFailed, match="boom"):
            await Answered(Publishing(log)).play(made)
    assert stored(log) == ([str(index) for index in range(300)], 300)


async def test_what_was_said_before_a_cancel_is_in_the_log(log: Slow) -> None:
    said, over = asyncio.Event(), asyncio.Event()

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(0))
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(b"".join(map(chunk, range(1, 9))))
        await writer.drain()
        said.set()
        await over.wait()

    async with engine(say) as made:
        playing = asyncio.create_task(Answered(Publishing(log, cadence=Cadence(5.0))).play(made))
        await said.wait()
        await asyncio.sleep(0.05)
        assert stored(log)[1] == 1
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
        over.set()
    assert stored(log) == ([str(index) for index in range(9)], 9)


@pytest.mark.parametrize(("window", "interval"), [(16, 0.0), (1, 0.0), (2, 0.05)])
async def test_engines_of_every_temper(log: Slow, window: int, interval: float) -> None:
    """Bursts and pauses, hang-ups at once or later, half a connection: each token once, in order, whatever comes."""
    seeds = random.Random(f"{window} {interval}")

    async def say(writer: asyncio.StreamWriter) -> None:
        tokens, mood = seeds.choice([1, 5, 40, 800]), random.Random(seeds.random())
        padding = mood.choice([1, 150, 1000])
        sent = [HEAD, *(chunk(index, padding=padding) for index in range(tokens)), STOP + END]
        while sent:
            much = mood.choice([1, 3, 300])
            writer.write(b"".join(sent[:much]))
            del sent[:much]
            if mood.random() < 0.3:
                await writer.drain()
                await asyncio.sleep(mood.choice([0, 0.001, 0.02]))
        end = mood.random()
        if end < 0.3:
            writer.write_eof()
        if end < 0.6:
            await writer.drain()
            await asyncio.sleep(mood.choice([0.05, 0.3]))

    publishing = Publishing(log, window=window, cadence=Cadence(interval))
    async with engine(say) as made:
        for _ in range(6):
            several = [Answered(publishing) for _ in range(5)]
            await asyncio.gather(*(answered.play(made) for answered in several))
            for answered in several:
                assert answered.said == [str(index) for index in range(len(answered.said))]
                assert answered.publisher.outbox.chain.next_offset == len(answered.said)
    assert publishing.turns.waiting == 0

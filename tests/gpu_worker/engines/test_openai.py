"""The adapter of OpenAI-compatible servers: against the benchmark's mock engine in a process of its own, and against
listeners that answer what each test needs. The real llama.cpp stands for the servers people run."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, cast

import pytest

from bench.ask import TOKEN
from gpu_worker.engines import (
    EngineFailed,
    EngineSettings,
    EngineUnavailable,
    Finish,
    Message,
    Piece,
    Prefix,
    Prompt,
    Tap,
    create,
    http,
    openai,
)
from gpu_worker.engines.edge import Edges
from gpu_worker.engines.engine import DRY
from gpu_worker.engines.openai import OpenAIEngine
from gpu_worker.engines.smollm2 import SmolLM2Engine

DEADLINE = 30.0
MODELS = {"data": [{"id": "m"}]}


@asynccontextmanager
async def mock_engine() -> AsyncIterator[str]:
    """The mock engine as a process; its base URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "bench.mock_engine", "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE):
            yield f"http://127.0.0.1:{int(await process.stdout.readline())}/v1"
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def engine(url: str, **settings: Any) -> AsyncIterator[OpenAIEngine]:
    made = create("openai", EngineSettings(openai_url=url, **{"slots": 64, "start_timeout": 10.0} | settings))
    assert isinstance(made, OpenAIEngine)
    async with asyncio.timeout(DEADLINE):
        await made.start()
        try:
            yield made
        finally:
            await made.close()


Answers = Callable[[str, bytes], bytes]


@asynccontextmanager
async def server(answers: Answers) -> AsyncIterator[str]:
    """Answers by path and body; `/models` is answered already. Its base URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        if path.endswith("/models"):
            writer.write(document(200, MODELS))
        else:
            writer.write(answers(path, body))
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"


def document(status: int, body: object) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        status,
        len(data),
        data,
    )


def stream(*events: object, done: bool = True) -> bytes:
    """An answer whose end is the connection's."""
    lines = [f"data: {json.dumps(event)}\n\n" for event in events] + (["data: [DONE]\n\n"] if done else [])
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + "".join(lines).encode()


def delta(reason: str | None = None, **fields: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": reason}]}


def ask(max_tokens: int | None = None, **fields: object) -> Prompt:
    return Prompt((Message("user", json.dumps(fields)),), max_tokens)


async def play(made: OpenAIEngine, prompt: Prompt, prefix: Prefix | None = None) -> tuple[list[Piece], Finish]:
    items = [item async for item in made.generate(made.cards[0].id, prompt, prefix or Prefix())]
    finish = items.pop()
    assert isinstance(finish, Finish)
    return [item for item in items if isinstance(item, Piece)], finish


async def stats(url: str) -> dict[str, int]:
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    told: dict[str, int] = json.loads(await http.call(http.Endpoint("127.0.0.1", port, ""), "GET", "/stats"))
    return told


def indexes(pieces: list[Piece]) -> list[int]:
    return [int(index) for index, _ in TOKEN.findall("".join(piece.text for piece in pieces).encode())]


# -- answers -----------------------------------------------------------------------------------------------------------


async def test_every_token_comes_once_in_order_and_is_counted() -> None:
    async with mock_engine() as url, engine(url) as made:
        pieces, finish = await play(made, ask(tokens=500, rate=0))
        assert made.cards[0].id == "mock"
    assert indexes(pieces) == list(range(500))
    assert sum(piece.n for piece in pieces) == 500
    assert finish == Finish("stop", 8, 500)


async def test_what_was_left_comes_in_few_pieces_when_it_is_drawn() -> None:
    """Each token once and in order, the end without being asked for; nothing is left running."""
    pieces: list[Piece] = []
    loop, tap = asyncio.get_running_loop(), Tap()
    tap.on_unread = lambda: cast(None, loop.call_later(0.05, lambda: tap.source.draw()))
    async with mock_engine() as url, engine(url) as made:
        finish = await made.pour("mock", ask(tokens=100, rate=500), Prefix(), pieces.append, tap)
        assert (await stats(url))["running"] == 0
    assert indexes(pieces) == list(range(100))
    assert finish == Finish("stop", 8, 100)
    assert sum(piece.n for piece in pieces) == 100
    assert len(pieces) < 50
    assert tap.source is DRY


async def test_where_nothing_can_be_left_everything_comes_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system without epoll, or with TLS."""
    monkeypatch.setattr(Edges, "available", False)
    pieces: list[Piece] = []
    tap = Tap()
    tap.on_unread = lambda: pytest.fail("nothing is left")
    async with mock_engine() as url, engine(url) as made:
        await made.pour("mock", ask(tokens=100, rate=500), Prefix(), pieces.append, tap)
    assert indexes(pieces) == list(range(100))


async def test_an_answer_goes_on_behind_its_prefix() -> None:
    """The server gets what was said as the beginning of its own answer, and only as much room as is left."""
    async with mock_engine() as url, engine(url) as made:
        pieces, finish = await play(made, ask(30, tokens=50, rate=0), Prefix(("0:1000000 ", "1:1000000 "), 2))
    assert indexes(pieces) == list(range(2, 30))
    assert finish.completion_tokens == 30


async def test_cancelling_ends_it_at_the_server_too() -> None:
    """Leaving the generator closes the connection: the server's stream is aborted, and its slot is free."""
    async with mock_engine() as url, engine(url, slots=1) as made:
        async with aclosing(made.generate("mock", ask(tokens=100_000, rate=50), Prefix())) as items:
            await anext(items)
            assert (await stats(url))["running"] == 1
            with pytest.raises(EngineFailed) as caught:
                await play(made, ask(tokens=1))
            assert (caught.value.code, caught.value.retryable) == ("overloaded", True)
        while (told := await stats(url))["running"]:
            pass  # each question is a turn of the server's loop
        assert told["aborted"] == 1
        await play(made, ask(tokens=1, rate=0))


async def test_each_model_has_its_own_slots() -> None:
    """As it announces: a worker counts the jobs of each for itself."""
    listed = {"data": [{"id": "one"}, {"id": "other"}]}
    async with staying(stream(delta(content="a"), done=False), listed) as (url, _), engine(url, slots=1) as made:
        running = [made.generate(model, ask(), Prefix()) for model in ("one", "other")]
        for items in running:
            assert await anext(items) == Piece("a", 1)
        with pytest.raises(EngineFailed, match="1 generations of one are running"):
            await anext(made.generate("one", ask(), Prefix()))
        for items in running:
            await items.aclose()


async def test_a_prefix_is_no_prompt() -> None:
    """It is told as a message, and a server counts it as one."""
    usage = {"choices": [], "usage": {"prompt_tokens": 1600, "completion_tokens": 1}}
    answers = stream(delta("stop", content="b"), usage)
    async with server(lambda path, body: answers) as url, engine(url) as made:
        for prefix, asked in ((Prefix(), 1600), (Prefix(("a",), 1505, 1500), 100), (Prefix((), 5, 0), 1600)):
            _, finish = await play(made, ask(), prefix)
            assert finish == Finish("stop", asked, prefix.tokens + 1)


async def test_not_pulling_pauses_the_server() -> None:
    """Tokens that nobody pulls stay in the sockets; none is lost."""
    async with mock_engine() as url, engine(url) as made:
        items = made.generate("mock", ask(tokens=60_000, rate=0), Prefix())
        async with aclosing(items):
            first = await anext(items)
            assert isinstance(first, Piece)
            answer = next(iter(made._running))
            while not answer._stopped:  # noqa: ASYNC110 - what is not read announces itself by nothing
                await asyncio.sleep(0)
            held = len(answer._waiting)
            await asyncio.sleep(0.05)  # would have been thousands
            assert len(answer._waiting) == held
            pieces = [first] + [item async for item in items if isinstance(item, Piece)]
    assert indexes(pieces) == list(range(60_000))


async def test_closing_ends_what_runs_in_words() -> None:
    async with mock_engine() as url, engine(url) as made:
        items = made.generate("mock", ask(tokens=100_000, rate=50), Prefix())
        await anext(items)
        await made.close()
        with pytest.raises(EngineFailed):
            async for _ in items:
                pass


async def test_the_real_llama_cpp_answers_through_it() -> None:
    """Its server is the one that the bundled model runs in; greedy, the two adapters say the same."""
    settings = EngineSettings(slots=1, context_length=512)
    prompt = Prompt((Message("system", "You count."), Message("user", "Count from 1 to 5.")), 24, 0.0)
    bundled = SmolLM2Engine(settings)
    async with asyncio.timeout(60):
        await bundled.start()
        try:
            said = [item async for item in bundled.generate("smollm2", prompt, Prefix())]
            endpoint = await bundled._child.endpoint()
            url = f"http://{endpoint.host}:{endpoint.port}/v1"
            extra = {"top_p": 0.9}
            async with engine(url, openai_key=endpoint.key, openai_resume="prefill", openai_extra=extra) as made:
                pieces, finish = await play(made, prompt)
                half = pieces[: len(pieces) // 2]
                tail, _ = await play(made, prompt, Prefix(tuple(p.text for p in half), sum(p.n for p in half)))
        finally:
            await bundled.close()
    whole = "".join(piece.text for piece in pieces)
    assert whole == "".join(item.text for item in said if isinstance(item, Piece))
    assert finish.prompt_tokens > 0
    assert "".join(p.text for p in half) + "".join(p.text for p in tail) == whole


# -- what servers say --------------------------------------------------------------------------------------------------


async def test_a_server_that_counts_is_believed() -> None:
    """`continuous_usage_stats`: a chunk of three tokens is three; thoughts are told from words."""

    def answers(path: str, body: bytes) -> bytes:
        return stream(
            delta(role="assistant", content=""),
            delta(reasoning_content="hm ") | {"usage": {"prompt_tokens": 5, "completion_tokens": 1}},
            delta(content="a b c ") | {"usage": {"prompt_tokens": 5, "completion_tokens": 4}},
            delta("length", content="d") | {"usage": {"prompt_tokens": 5, "completion_tokens": 5}},
        )

    async with server(answers) as url, engine(url) as made:
        pieces, finish = await play(made, ask())
    assert pieces == [Piece("hm ", 1, "reasoning"), Piece("a b c d", 4)]
    assert finish == Finish("length", 5, 5)


async def test_what_is_asked_is_what_the_protocol_and_the_operator_say() -> None:
    """Bounds, stops and seed; how it goes on; and the operator's own fields over ours."""
    asked: list[dict[str, Any]] = []

    def answers(path: str, body: bytes) -> bytes:
        asked.append(json.loads(body))
        return stream(delta("stop", content="x"))

    prompt = Prompt((Message("user", "hi"),), 10, 0.5, ("END",), 3)
    async with server(answers) as url:
        async with engine(url, openai_extra={"top_k": 1, "seed": 4}) as made:
            await play(made, prompt, Prefix(("so far",), 2))
        async with engine(url, openai_resume="refuse") as made:
            with pytest.raises(EngineFailed) as caught:
                await play(made, prompt, Prefix(("so far",), 2))
    (body,) = asked
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so far"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 8,
        "temperature": 0.5,
        "stop": ["END"],
        "seed": 4,
        "continue_final_message": True,
        "add_generation_prompt": False,
        "top_k": 1,
    }
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("answer", "code", "retryable"),
    [
        (stream(delta(content="x"), done=False), "engine_failed", True),  # cut off: not an end
        (stream(delta(content="x")), "engine_failed", True),  # [DONE] without a reason
        (stream({"error": {"message": "cuda", "code": 500}}), "engine_failed", True),
        (stream({"error": {"message": "no", "code": 400}}), "engine_failed", False),
        (stream("nonsense"), "engine_failed", True),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {\n\n", "engine_failed", True),
        (document(200, {"choices": []}), "engine_failed", True),  # a document where a stream was asked for
        (document(429, {"error": {"message": "busy"}}), "overloaded", True),
        (document(503, {}), "overloaded", True),
        (document(500, {"error": {"message": "oh"}}), "engine_failed", True),
        (document(401, {"error": "who are you"}), "engine_failed", False),
        (
            document(400, {"error": {"message": "x", "code": "context_length_exceeded"}}),
            "context_length_exceeded",
            False,
        ),
        (
            document(400, {"message": "This model's maximum context length is 9 tokens."}),
            "context_length_exceeded",
            False,
        ),
    ],
)
async def test_whatever_goes_wrong_is_said_in_our_words(answer: bytes, code: str, retryable: bool) -> None:
    async with server(lambda path, body: answer) as url, engine(url) as made:
        with pytest.raises(EngineFailed) as caught:
            await play(made, ask())
    assert (caught.value.code, caught.value.retryable) == (code, retryable)


@asynccontextmanager
async def staying(answer: bytes, listed: object = MODELS) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Says this, and keeps the connection until the client has gone, as the event tells; lists its models at once."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/models" in request:
            writer.write(document(200, listed))
        else:
            writer.write(answer)
            with suppress(ConnectionResetError):
                await reader.read()
            gone.set()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", gone


async def test_a_server_that_falls_silent_is_given_up() -> None:
    async with staying(stream(done=False)) as (url, gone), engine(url, stall_timeout=1.0) as made:
        with pytest.raises(EngineFailed, match="silent") as caught:
            await play(made, ask())
        await gone.wait()
    assert caught.value.retryable


async def test_an_answer_is_over_with_its_end_though_the_server_keeps_the_connection() -> None:
    """Also where all of it came in one piece, with the head: its end is not overlooked, nor waited for."""
    async with staying(stream(delta("stop", content="a"))) as (url, gone), engine(url) as made:
        async with asyncio.timeout(5):
            assert await play(made, ask()) == ([Piece("a", 1)], Finish("stop", 0, 1))
            await gone.wait()


# -- starting ----------------------------------------------------------------------------------------------------------


async def test_it_waits_for_a_server_that_is_still_starting() -> None:
    starting = [document(503, {}), document(502, {}), document(200, {"data": []})]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(starting.pop() if starting else document(200, {"data": [{"id": "a"}, {"id": "b"}]}))
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        async with engine(url, openai_models=("b",)) as made:
            assert [card.id for card in made.cards] == ["b"]
        with pytest.raises(EngineFailed, match="no model c, but a, b"):
            async with engine(url, openai_models=("c",)):
                pass
    said: list[str] = []
    late = create("openai", EngineSettings(openai_url=url, start_timeout=0.6))
    with pytest.raises(EngineFailed, match=r"not there after 0\.6 s: .*Connect"):
        await late.start(said.append)
    assert said
    assert all(url in why and "Connect" in why for why in said)


async def test_it_says_what_it_waits_for_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "PATIENCE", 0.2)
    said: asyncio.Queue[str] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert "nothing within 0.2 s" in await said.get()
        writer.write(document(200, {"data": [{"id": "a"}]}))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening, asyncio.timeout(DEADLINE):
        port = listening.sockets[0].getsockname()[1]
        made = create("openai", EngineSettings(openai_url=f"http://:secret@127.0.0.1:{port}"))
        await made.start(said.put_nowait)
        assert [card.id for card in made.cards] == ["a"]
        await made.close()
    assert said.empty()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host/v1", "http://", "http://h:99999", "http://[h"])
def test_without_a_server_it_says_what_to_set(url: str) -> None:
    with pytest.raises(EngineUnavailable, match="OKOME_WORKER_OPENAI_URL"):
        create("openai", EngineSettings(openai_url=url))

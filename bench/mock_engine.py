"""A mock engine: an OpenAI-compatible server that says what `bench.ask` describes, in the rhythm of a real one.

Real engines decode in steps: every running stream gets its token within the same two milliseconds, then nobody gets one
until the next step (measured with vLLM and llama.cpp). So do the streams of one rate here, unless they are said to be
those of several engines. A process of
its own, with one protocol object a connection and one write a token, so that it costs little beside what is measured.

    python -m bench.mock_engine PORT
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import defaultdict
from typing import Any, NamedTuple, cast

import msgspec
import uvloop

from bench.ask import MODEL, Ask, parse, text, told
from bench.trace import Trace, recorded

MAX_HEAD = 64 * 1024
MAX_BODY = 4 * 1024 * 1024
AT_ONCE = 64
"""Tokens of one turn of the loop at rate 0."""

TRACES = {trace.name: trace for trace in recorded()}

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def words(self) -> str:
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class _Request(msgspec.Struct):
    messages: list[_Message]
    model: str = MODEL
    stream: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class Beat(NamedTuple):
    """When streams step: `rate` times a second, those of engine `number` of so many, which step one after another."""

    rate: float
    engines: int
    number: int

    def first_after(self, now: float) -> float:
        """The first step that is a whole one away. One engine begins when its first stream does."""
        period = 1 / self.rate
        if self.engines == 1:
            return now + period
        offset = self.number * period / self.engines
        return (now - offset) // period * period + offset + 2 * period


class Engine:
    """All running streams, and the clock that they step by."""

    def __init__(self) -> None:
        self.running: set[Stream] = set()
        self.served = 0
        self.aborted = 0
        self._steps: dict[Beat, set[Stream]] = defaultdict(set)
        self._ticks: dict[Beat, asyncio.TimerHandle] = {}
        self._replays: dict[str, Replay] = {}

    def begin(self, stream: Stream) -> None:
        self.running.add(stream)
        self.served += 1
        stream.beat = beat = Beat(stream.ask.rate, stream.ask.engines, self.served % stream.ask.engines)
        if name := stream.ask.trace:
            if name not in self._replays:
                self._replays[name] = Replay(TRACES[name])
            self._replays[name].add(stream)
        elif not beat.rate:
            stream.step_all()
        else:
            self._steps[beat].add(stream)
            if beat not in self._ticks:
                self._arm(beat, beat.first_after(asyncio.get_running_loop().time()))

    def end(self, stream: Stream) -> None:
        self.running.discard(stream)
        self._steps[stream.beat].discard(stream)
        for replay in self._replays.values():
            replay.discard(stream)

    def _arm(self, beat: Beat, due: float) -> None:
        self._ticks[beat] = asyncio.get_running_loop().call_at(due, self._tick, beat, due)

    def _tick(self, beat: Beat, due: float) -> None:
        for stream in list(self._steps[beat]):
            stream.step()
        if self._steps[beat]:
            self._arm(beat, due + 1 / beat.rate)
        else:
            del self._ticks[beat]


class Replay:
    """A trace that is played over and over: whoever runs is one of its recorded streams, in turn."""

    def __init__(self, trace: Trace) -> None:
        self._steps = trace.steps
        self._period = trace.period
        self._streams: list[set[Stream]] = [set() for _ in trace.streams]
        self._added = 0
        self._next = 0
        self._began = asyncio.get_running_loop().time()
        self._arm()

    def add(self, stream: Stream) -> None:
        self._streams[self._added % len(self._streams)].add(stream)
        self._added += 1

    def discard(self, stream: Stream) -> None:
        for streams in self._streams:
            streams.discard(stream)

    def _arm(self) -> None:
        asyncio.get_running_loop().call_at(self._began + self._steps[self._next][0], self._step)

    def _step(self) -> None:
        for number in self._steps[self._next][1]:
            for stream in list(self._streams[number]):
                stream.step()
        self._next += 1
        if self._next == len(self._steps):
            self._next = 0
            self._began += self._period
        self._arm()


class Stream:
    """One answer on its way. `close` may come at any time: whoever asked has left."""

    def __init__(
        self, engine: Engine, transport: asyncio.WriteTransport, ask: Ask, first: int, bound: int | None
    ) -> None:
        self.ask = ask
        self.beat = Beat(0, 1, 0)
        self._engine = engine
        self._transport = transport
        self._index = first
        self._end = ask.tokens if bound is None else min(ask.tokens, first + bound)
        self._first = first
        self._timer: asyncio.TimerHandle | None = None
        head = {"id": f"chatcmpl-{engine.served}", "object": "chat.completion.chunk", "created": int(time.time())}
        self._before = json.dumps(head | {"model": MODEL}, separators=(",", ":"))[:-1].encode()
        transport.write(_HEAD)
        self._event(b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]')

    def step(self) -> None:
        """The next token."""
        token = text(self._index, time.monotonic_ns() // 1000).encode()
        self._event(b'"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]' % token)
        self._index += 1
        if self._index >= self._end:
            self._finish()

    def step_all(self) -> None:
        for _ in range(min(AT_ONCE, self._end - self._index)):
            self.step()
        if self._index < self._end:
            self._timer = asyncio.get_running_loop().call_later(0, self.step_all)

    def close(self) -> None:
        if self in self._engine.running:
            self._engine.aborted += 1
            self._over()

    def _finish(self) -> None:
        n = self._index - self._first
        self._event(b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]')
        self._event(b'"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":%d,"total_tokens":%d}' % (n, n + 8))
        self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        self._over()

    def _over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._engine.end(self)

    def _event(self, rest: bytes) -> None:
        event = b"data: %s,%s}\n\n" % (self._before, rest)
        self._transport.write(b"%x\r\n%s\r\n" % (len(event), event))


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive: one request after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._data = b""
        self._transport: asyncio.Transport | None = None
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def connection_lost(self, error: Exception | None) -> None:
        if self._stream is not None:
            self._stream.close()

    def data_received(self, data: bytes) -> None:
        self._data += data
        while self._request():
            pass

    def _request(self) -> bool:
        """Answer one request that is here whole; says whether there was one."""
        assert self._transport is not None
        head, separator, rest = self._data.partition(b"\r\n\r\n")
        if not separator:
            if len(head) > MAX_HEAD:
                self._transport.abort()
            return False
        first, *lines = head.split(b"\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        length = int(fields.get(b"content-length", b"0"))
        if length > MAX_BODY:
            self._transport.abort()
            return False
        if len(rest) < length:
            return False
        body, self._data = rest[:length], rest[length:]
        method, path, _ = first.split(b" ", 2)
        self._answer(method, path.partition(b"?")[0], body)
        return bool(self._data)

    def _answer(self, method: bytes, path: bytes, body: bytes) -> None:
        engine = self._engine
        match method, path:
            case b"GET", b"/v1/models":
                model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "bench", "max_model_len": 1_000_000}
                self._document(200, {"object": "list", "data": [model]})
            case b"GET", b"/stats":
                told = {"running": len(engine.running), "served": engine.served, "aborted": engine.aborted}
                self._document(200, told)
            case b"GET", b"/get_model_info" | b"/model_info":
                self._document(200, {"model_path": MODEL, "is_generation": True})
            case b"GET", b"/get_server_info" | b"/server_info":
                self._document(200, {"model_path": MODEL, "served_model_name": MODEL, "version": "0", "dp_size": 1})
            case b"GET", _:
                self._document(200, {"status": "ok"})
            case b"POST", b"/v1/chat/completions":
                self._complete(body)
            case _:
                self._document(404, _error("no such thing", "not_found"))

    def _complete(self, body: bytes) -> None:
        try:
            request = msgspec.json.decode(body, type=_Request)
            messages = request.messages
            first = told(messages[-1].words) if messages and messages[-1].role == "assistant" else 0
            ask = parse(next(one.words for one in reversed(messages) if one.role == "user"))
        except (msgspec.DecodeError, StopIteration) as error:
            self._document(400, _error(f"not what this engine plays: {error!r}", "invalid_request_error"))
            return
        if ask.trace and ask.trace not in TRACES:
            self._document(400, _error(f"the traces are {', '.join(TRACES)}", "invalid_request_error"))
            return
        if not request.stream:
            self._document(400, _error("only streams are played", "invalid_request_error"))
            return
        assert self._transport is not None
        self._stream = Stream(
            self._engine, self._transport, ask, first, request.max_completion_tokens or request.max_tokens
        )
        self._engine.begin(self._stream)

    def _document(self, status: int, body: dict[str, Any]) -> None:
        assert self._transport is not None
        data = json.dumps(body).encode()
        self._transport.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(data))
            + data
        )


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


async def serve(port: int) -> None:
    """On loopback, until SIGTERM or SIGINT. Says its port on stdout when it listens. Raises OSError: it is busy."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engine = Engine()
    server = await loop.create_server(lambda: Connection(engine), "127.0.0.1", port, backlog=4096)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))

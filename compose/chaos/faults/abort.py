"""Clients that break off: any request, cut at any byte of it or of its answer, by RST. Proven by the ingresses."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from urllib.parse import urlsplit

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from broker.bus.script import Script
from compose.chaos.answers import answered
from compose.chaos.crowd import Watched
from compose.chaos.fault import Fault, comes_true
from compose.chaos.http import call, reset
from compose.chaos.subject import Running
from compose.chaos.system import System

LOOPBACK = "127.0.0.1"
ABREAST = 12  # clients at a time
SIGN_TIMEOUT = 20.0
WRONG_TIMEOUT = 5.0  # in a control run, where they do not reach it
CLIENT_TIMEOUT = 10.0
PATIENCE = 0.15  # seconds, at most, that a client waits before it goes
ANSWER = 0.6  # seconds, at most, of the answers that they ask for

_GENERATION = re.compile(rb'"generation_id":\s*"(\w+)"')


class Aborters:
    """Clients of a few sessions who never stay: they stream, ask, cancel and log in, and break off anywhere."""

    def __init__(self, door: Callable[[], str], api_key: str, sessions: Sequence[Watched], rng: random.Random) -> None:
        self.did: Counter[str] = Counter()
        self._door = door
        self._key = api_key
        self._sessions = sessions
        self._rng = rng
        self._known: dict[str, str] = {}  # sid -> the generation seen last
        self._kinds = (self._stream, self._socket, self._generate, self._generate, self._cancel, self._open, self._chat)

    async def abort(self, times: int) -> None:
        """So many clients, some of them at once. Raises nothing that the system could cause: whoever is kept waiting
        for too long breaks off as well."""
        left = iter(range(times))

        async def one_after_the_other() -> None:
            for _ in left:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLIENT_TIMEOUT):
                        await self._one()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(ABREAST):
                tasks.create_task(one_after_the_other())

    async def _one(self) -> None:
        rng, session = self._rng, self._rng.choice(self._sessions)
        kind = rng.choice(self._kinds)
        said = kind(session)
        self.did[kind.__name__.strip("_")] += 1
        where = urlsplit(self._door())
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            try:
                if rng.random() < 0.3:  # in the middle of what it says, or before
                    writer.write(said[: rng.randrange(len(said))])
                    await asyncio.sleep(rng.choice((0, rng.uniform(0, PATIENCE))))
                else:
                    writer.write(said)
                    await self._listen(reader, session, rng.choice((0, rng.uniform(0, PATIENCE))))
            finally:
                reset(writer)

    async def _listen(self, reader: asyncio.StreamReader, session: Watched, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while part := await reader.read(4096):
                    if found := _GENERATION.search(part):
                        self._known[session.sid] = found[1].decode()

    # -- what they say -----------------------------------------------------------------------------------------------

    def _stream(self, session: Watched) -> bytes:
        after = self._rng.choice(("", "?after=0", "?after=now", "?until=done"))
        return _request("GET", f"/v1/sessions/{session.sid}/events{after}", session.token)

    def _socket(self, session: Watched) -> bytes:
        key = base64.b64encode(self._rng.randbytes(16)).decode()
        upgrade = {
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": key,
            "sec-websocket-protocol": "okome.v1",
        }
        event, data = "generate", {"request_id": key, "prompt": self._script()}
        if (gid := self._known.get(session.sid)) and self._rng.random() < 0.5:
            event, data = "cancel", {"request_id": key, "generation_id": gid}
        head = _request("GET", f"/v1/sessions/{session.sid}/ws?after=0", session.token, None, upgrade)
        return head + _message({"event": event, "data": data})

    def _generate(self, session: Watched) -> bytes:
        way = self._rng.choice(("", "?wait=5"))
        accept = self._rng.choice(("application/json", "text/event-stream"))
        path = f"/v1/sessions/{session.sid}/generations{way}"
        return _request("POST", path, session.token, {"prompt": self._script()}, {"accept": accept})

    def _cancel(self, session: Watched) -> bytes:
        gid = self._known.get(session.sid, "none")
        token = self._rng.choice((session.token, self._key))
        return _request("POST", f"/v1/sessions/{session.sid}/generations/{gid}/cancel", token, {})

    def _open(self, _: Watched) -> bytes:
        return _request("POST", "/v1/sessions", self._key, {"model": "scripted"})

    def _chat(self, _: Watched) -> bytes:
        body = {"model": "scripted", "stream": self._rng.random() < 0.7}
        messages = [{"role": "user", "content": self._script()}]
        return _request("POST", "/v1/chat/completions", self._key, {**body, "messages": messages})

    def _script(self) -> str:
        seconds, rate = self._rng.uniform(0, ANSWER), self._rng.choice((30, 50, 100))
        ttft = self._rng.choice((0, 0, 200))
        return msgspec.json.encode(Script(tokens=1 + int(seconds * rate), rate=rate, ttft_ms=ttft)).decode()


def abort(system: System | Running, clients: Aborters, times: int, *, wrong: bool) -> Fault:
    """`times` clients break off. `wrong`: their door leads `nowhere`."""
    before = (0.0, 0.0)

    async def strike() -> None:
        nonlocal before
        before = await answered(lambda: _gone(system))
        await clients.abort(times)

    async def counted() -> str | None:
        requests, streams = (now - then for now, then in zip(await _gone(system), before, strict=True))
        if not requests or not streams:
            return None
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(clients.did.items()))
        return f"{times} clients broke off ({said}); {requests:g} requests and {streams:g} streams lost their client"

    timeout = WRONG_TIMEOUT if wrong else SIGN_TIMEOUT
    return Fault(f"{times} clients", strike, lambda: comes_true(counted, "requests that lost their client", timeout))


@contextlib.asynccontextmanager
async def nowhere() -> AsyncIterator[str]:
    """The URL of a listener that answers nobody: the door of a control run."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                pass
        writer.close()

    async with await asyncio.start_server(swallow, LOOPBACK) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"


async def _gone(system: System | Running) -> tuple[float, float]:
    """Requests without an answer, and streams whose client went away, as all ingresses count them."""
    requests = streams = 0.0
    for ingress in system.processes("ingress"):
        told = (await call(ingress.url, "GET", "/metrics", system.api_key)).body.decode()
        for family in text_string_to_metric_families(told):
            for sample in family.samples:
                if sample.name == "okome_ingress_requests_total" and sample.labels["status"] == "0":
                    requests += sample.value
                elif sample.name == "okome_ingress_stream_ends_total" and sample.labels["reason"] == "gone":
                    streams += sample.value
    return requests, streams


def _request(method: str, path: str, token: str, body: object = None, headers: dict[str, str] | None = None) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    fields = {"host": "okome", "authorization": f"Bearer {token}", **(headers or {})}
    if body is not None:
        fields |= {"content-type": "application/json", "content-length": str(len(payload))}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode() + b"\r\n" + payload


def _message(said: object) -> bytes:
    """One text frame of a client (RFC 6455), its mask all zero."""
    payload = json.dumps(said).encode()
    size = bytes((len(payload),)) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2, "big")
    return b"\x81" + bytes((0x80 | size[0],)) + size[1:] + bytes(4) + payload

"""`okome chat` as a person has it, at a terminal: whatever happens to an answer, the conversation goes on."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

TIMEOUT = 30.0
SID = "00abcdefgh"


class Answer(NamedTuple):
    status: int
    body: str
    headers: tuple[tuple[str, str], ...] = ()
    kind: str = "application/json"


def refused(status: int, code: str, message: str, param: str = "", *, after: str = "") -> Answer:
    error = {"code": code, "message": message, **({"param": param} if param else {})}
    return Answer(status, json.dumps({"error": error}), (("Retry-After", after),) if after else ())


MADE = Answer(201, json.dumps({"session_id": SID}))
ACCEPTED = Answer(202, json.dumps({"generation_id": "g1", "cursor": "a-1"}))
SAID = Answer(
    200,
    'event: token\nid: a-2\ndata: {"generation_id": "g1", "text": "hello"}\n\n'
    'event: done\nid: a-3\ndata: {"generation_id": "g1", "finish_reason": "stop"}\n\n',
    kind="text/event-stream",
)


class Server(ThreadingHTTPServer):
    """Gives its answers in turn, to whatever is asked; remembers who asked what under which key."""

    def __init__(self, port: int, answers: list[Answer]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []
        super().__init__(("127.0.0.1", port), Face)


class Face(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("idempotency-key", "")))
        answer = self.server.answers.pop(0)
        self.send_response(answer.status)
        self.send_header("content-type", answer.kind)
        self.send_header("content-length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(*answers: Answer, port: int = 0) -> Iterator[Server]:
    server = Server(port, list(answers))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Terminal:
    """The command at a terminal of its own."""

    def __init__(self, url: str, home: Path, *flags: str) -> None:
        self._mine, theirs = pty.openpty()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OKOME_")}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "compose.cli.main", "chat", "--url", url, *flags],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**clean, "XDG_STATE_HOME": str(home), "NO_COLOR": "1", "TERM": "dumb", "OKOME_API_KEY": "ok_whatever"},
        )
        os.close(theirs)
        self.said = ""

    def until(self, words: str, since: int = 0) -> int:
        """Wait until it has said that; returns where that ends in what it said."""
        deadline = time.monotonic() + TIMEOUT
        while (found := self.said.find(words, since)) < 0:
            assert time.monotonic() < deadline, f"never said {words!r}:\n{self.said}"
            if select.select([self._mine], [], [], 0.5)[0]:
                self.said += os.read(self._mine, 65536).decode()
        return found + len(words)

    def type(self, text: str) -> None:
        os.write(self._mine, text.encode())

    def end(self) -> int:
        try:
            return self.process.wait(TIMEOUT)
        finally:
            self.close()

    def close(self) -> None:
        if self._mine >= 0:
            self.process.kill()
            self.process.wait()
            os.close(self._mine)
            self._mine = -1


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Open]:
    opened: list[Terminal] = []

    def open_one(url: str, *flags: str) -> Terminal:
        opened.append(Terminal(url, tmp_path, *flags))
        opened[-1].until("> ")
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_refusal_is_said_and_the_prompt_comes_back_in_the_same_session(terminal: Open) -> None:
    no_script = refused(400, "malformed", "must be a script", "prompt")
    with serving(MADE, no_script, ACCEPTED, SAID) as server:
        talk = terminal(url(server))
        talk.type("hi\n")
        seen = talk.until("must be a script (malformed) [prompt]")
        talk.until("> ", seen)
        talk.type("again\n")
        talk.until("> ", talk.until("hello", seen))
        talk.type("\x04")
        assert talk.end() == 0
        paths = [path for path, _ in server.asked]
    assert paths[:3] == ["/v1/sessions", *[f"/v1/sessions/{SID}/generations"] * 2]


def test_the_session_is_named_so_that_it_can_be_gone_on_with(terminal: Open) -> None:
    with serving(MADE, ACCEPTED, SAID) as server:
        talk = terminal(url(server))
        talk.type("hi\n")
        talk.until(" chat --sid " + SID, talk.until(f"session {SID}: go on with `"))
        talk.until("hello")


def test_who_says_when_to_come_back_is_asked_again_and_does_it_once(terminal: Open) -> None:
    away = refused(503, "unavailable", "OKOME does not answer", after="1")
    with serving(MADE, away, away, ACCEPTED, SAID) as server:
        talk = terminal(url(server))
        talk.type("hi\n")
        talk.until("OKOME does not answer (unavailable); trying again")
        talk.until("hello")
        keys = {key for path, key in server.asked if path.endswith("/generations")}
    assert len(keys) == 1, "however often it was asked"
    assert talk.said.count("trying again") == 1


def test_a_system_that_is_started_anew_is_waited_for(terminal: Open) -> None:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    talk = terminal(f"http://127.0.0.1:{port}")
    talk.type("hi\n")
    talk.until("trying again")
    with serving(MADE, ACCEPTED, SAID, port=port):
        talk.until("hello")


def test_ctrl_c_gives_a_wait_up_and_at_the_prompt_leaves(terminal: Open) -> None:
    away = refused(503, "unavailable", "OKOME does not answer", after="20")
    with serving(away) as server:
        talk = terminal(url(server))
        talk.type("hi\n")
        seen = talk.until("trying again")
        talk.process.send_signal(signal.SIGINT)
        talk.until("> ", talk.until("given up", seen))
        # One that comes between the prompt and the wait for a key is noticed by Python with the next one only.
        for _ in range(5):
            talk.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                talk.process.wait(3)
                break
        assert talk.end() == 130
    assert "Traceback" not in talk.said


def test_one_prompt_for_a_program_fails_at_once(tmp_path: Path) -> None:
    away = refused(503, "unavailable", "OKOME does not answer", after="5")
    with serving(away) as server:
        told = subprocess.run(
            [sys.executable, "-P", "-m", "compose.cli.main", "chat", "--url", url(server), "--once", "hi"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "OKOME_API_KEY": "ok_whatever"},
            check=False,
        )
        assert len(server.asked) == 1
    assert told.returncode == 1
    assert told.stderr == "okome: OKOME does not answer (unavailable)\n"

"""`okome chat`: a conversation in the terminal. Ctrl-C stops the answer, not the conversation; Ctrl-D leaves."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from dataclasses import dataclass
from typing import Any

import httpx

from broker.bus.frames import TERMINAL
from compose.cli import table
from compose.cli.api import Away, Event, ask, ask_again, follow
from compose.cli.outcome import FAILED, INTERRUPTED, OK, CommandFailed
from compose.cli.target import Target
from compose.cli.transcript import RED, Transcript
from compose.command import command

CANCEL_TIMEOUT = 5.0
AWAY_PATIENCE = 30.0
"""Seconds for which a person's prompt waits for a system that is started anew."""


@dataclass
class Answer:
    """What came of one prompt."""

    session_id: str
    generation_id: str
    text: str = ""
    status: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    interrupted: bool = False

    def take(self, event: Event) -> None:
        match event.name:
            case "token":
                self.text += str(event.data.get("text", ""))
            case "usage":
                self.usage = {name: value for name, value in event.data.items() if name.endswith("_tokens")}
            case name if name in TERMINAL:
                self.status = name
                self.finish_reason = event.data.get("finish_reason")


def chat(target: Target, *, once: str | None, model: str, sid: str, max_tokens: int | None, as_json: bool) -> int:
    """The exit code: of `--once` that of its answer, of a conversation 0.

    A person at a terminal keeps the prompt whatever happens to an answer; a program is told by CommandFailed.
    """
    talk = Conversation(target, sid, model, max_tokens)
    if once is not None:
        answer = asyncio.run(talk.turn(once, None if as_json else Transcript(roles=False)))
        if as_json:
            told = {name: value for name, value in vars(answer).items() if name != "interrupted"}
            table.as_json(told)
        if answer.interrupted:
            return INTERRUPTED
        return OK if answer.status == "done" else FAILED
    talk.introduces = True
    if not sys.stdin.isatty():
        while (prompt := _read("")) is not None:
            if prompt.strip():
                asyncio.run(talk.turn(prompt, Transcript(roles=False)))
        return OK
    target.known()  # else there is nobody to talk to, and no use in a prompt
    talk.patience = AWAY_PATIENCE
    sys.stderr.write("Ctrl-C stops an answer, Ctrl-D leaves.\n")
    while True:
        try:
            prompt = _read("> ")
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            return INTERRUPTED
        if prompt is None:
            sys.stdout.write("\n")
            return OK
        if not prompt.strip():
            continue
        transcript = Transcript(roles=False)
        try:
            asyncio.run(talk.turn(prompt, transcript))
        except CommandFailed as error:
            transcript.note(str(error), RED)
        except KeyboardInterrupt:
            transcript.note("given up")


def _read(sign: str) -> str | None:
    """One prompt; None at the end of the input."""
    try:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # input() edits lines and remembers them once this is imported
        return input(sign)
    except EOFError:
        return None


class Conversation:
    """A session and what is asked in it. The session is made by the first turn, and outlives a turn that fails."""

    def __init__(self, target: Target, sid: str, model: str, max_tokens: int | None) -> None:
        self.patience = 0.0
        """Seconds for which a system that is away for the moment is asked again."""
        self.introduces = False
        """Says which session it has made."""
        self._target = target
        self._sid = sid
        self._model = model
        self._max_tokens = max_tokens

    async def turn(self, prompt: str, transcript: Transcript | None) -> Answer:
        """One prompt and its answer, shown as it comes. Raises CommandFailed. Cancelled, the answer goes on."""
        model = {"model": self._model} if self._model else {}
        async with self._target.client() as client:
            if not self._sid:
                self._sid = (await self._ask(client, "/v1/sessions", model, transcript))["session_id"]
                if transcript and self.introduces:
                    transcript.note(f"session {self._sid}: go on with `{command()} chat --sid {self._sid}`")
            body: dict[str, Any] = {"prompt": prompt, **model}
            if self._max_tokens is not None:
                body["max_tokens"] = self._max_tokens
            accepted = await self._ask(client, f"/v1/sessions/{self._sid}/generations", body, transcript)
            answer = Answer(self._sid, accepted["generation_id"])
            await _show(client, answer, accepted["cursor"], transcript)
        return answer

    async def _ask(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any], transcript: Transcript | None
    ) -> dict[str, Any]:
        said = ""

        def waiting(error: Away) -> None:
            nonlocal said
            if transcript and str(error) != said:
                said = str(error)
                transcript.note(f"{said}; trying again")

        return await ask_again(client, "POST", path, body, patience=self.patience, waiting=waiting)


async def _show(client: httpx.AsyncClient, answer: Answer, cursor: str, transcript: Transcript | None) -> None:
    """Until its end; Ctrl-C cancels it."""
    interrupt = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupt.set)
    reading = asyncio.create_task(_read_answer(client, answer, cursor, transcript))
    interrupted = asyncio.create_task(interrupt.wait())
    try:
        await asyncio.wait([reading, interrupted], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            answer.interrupted = True
            # The next Ctrl-C ends the turn itself: asyncio.run's own handler takes it.
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            await ask(client, "POST", f"/v1/sessions/{answer.session_id}/generations/{answer.generation_id}/cancel")
            await asyncio.wait([reading], timeout=CANCEL_TIMEOUT)
        if reading.done():
            reading.result()
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        for task in (reading, interrupted):
            task.cancel()
        await asyncio.gather(reading, interrupted, return_exceptions=True)
        if transcript:
            transcript.end()


async def _read_answer(client: httpx.AsyncClient, answer: Answer, cursor: str, transcript: Transcript | None) -> None:
    events = follow(client, answer.session_id, after=cursor)
    async with contextlib.aclosing(events):
        async for event in events:
            if event.data.get("generation_id") != answer.generation_id:
                continue
            answer.take(event)
            if transcript:
                transcript.show(event)
            if event.name in TERMINAL:
                return

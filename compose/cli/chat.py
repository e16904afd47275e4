"""`okome chat`: a conversation in the terminal. Ctrl-C stops the answer, not the conversation; Ctrl-D leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from dataclasses import dataclass
from typing import Any

import httpx

from broker.bus.frames import TERMINAL
from compose.cli.api import Event, ask, follow
from compose.cli.outcome import FAILED, INTERRUPTED, OK
from compose.cli.target import Target
from compose.cli.transcript import Transcript

CANCEL_TIMEOUT = 5.0


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
    """The exit code: of `--once` that of its answer, of a conversation 0."""
    if once is not None:
        answer = asyncio.run(_turn(target, sid, once, model, max_tokens, None if as_json else Transcript(roles=False)))
        if as_json:
            told = {name: value for name, value in vars(answer).items() if name != "interrupted"}
            sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")
        if answer.interrupted:
            return INTERRUPTED
        return OK if answer.status == "done" else FAILED
    interactive = sys.stdin.isatty()
    if interactive:
        sys.stderr.write("Ctrl-C stops an answer, Ctrl-D leaves.\n")
    while True:
        prompt = _read(interactive)
        if prompt is None:
            return OK
        if prompt.strip():
            answer = asyncio.run(_turn(target, sid, prompt, model, max_tokens, Transcript(roles=False)))
            sid = answer.session_id


def _read(interactive: bool) -> str | None:
    """One prompt; None at the end of the input."""
    try:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # input() edits lines and remembers them once this is imported
        return input("> ") if interactive else input()
    except EOFError:
        if interactive:
            sys.stdout.write("\n")
        return None


async def _turn(
    target: Target, sid: str, prompt: str, model: str, max_tokens: int | None, transcript: Transcript | None
) -> Answer:
    async with target.client() as client:
        if not sid:
            sid = (await ask(client, "POST", "/v1/sessions", {"model": model} if model else {}))["session_id"]
        body: dict[str, Any] = {"prompt": prompt}
        if model:
            body["model"] = model
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        accepted = await ask(client, "POST", f"/v1/sessions/{sid}/generations", body)
        answer = Answer(sid, accepted["generation_id"])
        interrupt = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, interrupt.set)
        reading = asyncio.create_task(_read_answer(client, answer, accepted["cursor"], transcript))
        interrupted = asyncio.create_task(interrupt.wait())
        try:
            await asyncio.wait([reading, interrupted], return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                answer.interrupted = True
                # The next Ctrl-C ends the command itself: asyncio.run's own handler takes it.
                loop.remove_signal_handler(signal.SIGINT)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                await ask(client, "POST", f"/v1/sessions/{sid}/generations/{answer.generation_id}/cancel")
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
    return answer


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

"""The conversation of a session: frames of its log, and records of what has ended, as turns. Pure.

The worker builds a model's context with it, a node its `message` events, OKOME the record it keeps of an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from broker.bus.frames import START, TOKEN, USAGE, Frame
from broker.bus.records import Generation, Message, Request


class Turn(msgspec.Struct):
    """One generation: its input and what the model has said so far. Sequences are of the log."""

    gid: str
    model: str
    input: list[Message]
    first_seq: int
    last_seq: int = 0
    epoch: int = 1
    attempt: str = ""
    worker: str = ""
    tokens: int = 0  # the next token's offset, over all epochs
    parts: list[str] = []
    status: str = "running"  # or the terminal frame's type
    finish_reason: str = ""
    code: str = ""
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: bool = False  # `parts` are the beginning of a text that was too long for its record

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def finished(self) -> bool:
        return self.status != "running"

    def take(self, frame: Frame) -> None:
        """Add the next frame of this generation."""
        self.last_seq = frame.seq
        self.epoch = frame.epoch
        self.attempt = frame.attempt
        self.tokens = frame.offset + frame.n
        if frame.type == TOKEN:
            self.parts.append(frame.fields()["text"])
        elif frame.type == USAGE:
            data = frame.fields()
            self.prompt_tokens = data["prompt_tokens"]
            self.completion_tokens = data["completion_tokens"]
        elif frame.terminal:
            data = frame.fields()
            self.status = frame.type
            self.finish_reason = data.get("finish_reason", "")
            self.code = data.get("code", "")
            self.error = data.get("message", "")
            self.completion_tokens = self.completion_tokens or self.tokens
        elif frame.type != START:
            self.worker = frame.fields().get("worker", self.worker)  # attempt


def fold(frames: Iterable[Frame]) -> list[Turn]:
    """Turns in order. Frames before the first `start` (its head aged out) are left out: half an input is none."""
    turns: list[Turn] = []
    for frame in frames:
        if frame.type == START:
            data = frame.fields()
            turn = Turn(frame.gid, data["model"], _messages(data["input"]), frame.seq, parts=[], worker=data["worker"])
            turns.append(turn)
        if turns and turns[-1].gid == frame.gid:
            turns[-1].take(frame)
    return turns


def of_record(generation: Generation) -> Turn:
    """The turn that a record tells of; its text is that of the end, "" before."""
    return Turn(
        generation.id,
        generation.request.model,
        new_input(generation.request),
        generation.first_seq,
        generation.last_seq,
        parts=[generation.text] if generation.text else [],
        tokens=generation.completion_tokens,
        status=str(generation.status),
        finish_reason=generation.finish_reason,
        code=generation.code,
        error=generation.error,
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.completion_tokens,
        truncated=generation.truncated,
    )


def new_input(request: Request) -> list[Message]:
    """This turn's new messages, which `start` carries: of a whole context, those behind the last answer."""
    answers = [index for index, message in enumerate(request.messages) if message.role == "assistant"]
    return list(request.messages[answers[-1] + 1 :] if request.whole_context and answers else request.messages)


def context(turns: Iterable[Turn]) -> list[Message]:
    """What a model is told of earlier turns: input and answer of every turn that said anything, in order."""
    messages: list[Message] = []
    for turn in turns:
        if turn.parts:
            messages.extend(turn.input)
            messages.append(Message("assistant", turn.text))
    return messages


def _messages(items: list[dict[str, Any]]) -> list[Message]:
    return [Message(item["role"], item["content"]) for item in items]

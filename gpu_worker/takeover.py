"""What a delivered job asks of the worker that got it. Pure: the log, the record and the beats are arguments.

A delivery is an invitation, not a verdict: killing one NATS server delivers every held job again although all workers
live. The log says what was done, the beats say who does it, KV says whether anybody still wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from broker.bus.attempts import MAX_BARREN_EPOCHS, barren_epochs
from broker.bus.chain import Chain
from broker.bus.errors import ChainBroken, FrameMalformed
from broker.bus.frames import ATTEMPT, REASONING, START, TERMINAL, TOKEN, Frame
from broker.bus.records import Beat, Generation, Job

HELD_ELSEWHERE_DELAY = 1.0  # seconds until the queue offers a job again that somebody alive holds


@dataclass(frozen=True, slots=True)
class Ack:
    """Nothing is left to be done: its terminal is in the log, or the session is gone."""

    reason: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """It is held here already: from now on by the newest delivery."""


@dataclass(frozen=True, slots=True)
class NakLater:
    """Somebody alive holds it, or something else runs in the session: offer it again in `delay` seconds."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class Begin:
    """Nobody has begun: write `start` behind `chain`."""

    chain: Chain
    cancelled: bool


@dataclass(frozen=True, slots=True)
class Opening:
    """The newest `start` or `attempt` of a generation: `worker` wrote it at `t`, milliseconds of its own clock."""

    worker: str
    t: int


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Somebody began and is gone: write `attempt` at `epoch` behind `chain`, go on behind `said`."""

    chain: Chain
    epoch: int
    said: tuple[str, ...]  # the answer so far, frame by frame ...
    spoken: int  # ... and its tokens
    size: int  # bytes of its text and of the reasoning
    barren: int  # epochs in a row without a new token, so far
    cancelled: bool
    opening: Opening | None  # None where the log no longer says it


@dataclass(frozen=True, slots=True)
class GiveUp:
    """MAX_BARREN_EPOCHS attempts gave nothing: write the terminal `failed` at `epoch` behind `chain`."""

    chain: Chain
    epoch: int
    opening: Opening | None


Decision = Ack | Adopt | NakLater | Begin | TakeOver | GiveUp


def decide(
    job: Job,
    frames: Iterable[Frame],
    last: int,
    record: Generation | None,
    held_here: Iterable[str],
    others: Mapping[str, Beat],
) -> Decision:
    """What to do with a delivery of `job`.

    `frames`: the session's frames behind `job.after`, read at the leader; `last`: the subject's last sequence there
    (0: none). `record`: its entry in KV `generations`, None where there is none any more. `others`: the last beats of
    live workers, this one not among them. Raises ChainBroken where the log is not whole: read again; FrameMalformed
    where what it holds of the answer is no text.
    """
    if job.gid in held_here:
        return Adopt()
    if record is None:
        return Ack("the session was deleted")
    if not record.status.open:
        return Ack(f"recorded as {record.status}")
    mine, chain = _read(job, frames, last)
    if mine and mine[-1].type in TERMINAL:
        return Ack(f"the log ends with {mine[-1].type}")
    holder = _holder(job.gid, others)
    if holder:
        return NakLater(HELD_ELSEWHERE_DELAY, f"held by {holder}")
    if chain.open and chain.gid != job.gid:
        return NakLater(HELD_ELSEWHERE_DELAY, f"{chain.gid} runs in this session")
    if not mine:
        return Begin(chain, record.cancel)
    barren = barren_epochs(mine)
    if barren >= MAX_BARREN_EPOCHS and not record.cancel:
        return GiveUp(chain, chain.epoch + 1, _opening(mine))
    said = [frame for frame in mine if frame.type == TOKEN]
    texts, spoken = tuple(map(_text, said)), sum(frame.n for frame in said)
    thoughts = [_text(frame) for frame in mine if frame.type == REASONING]
    size = sum(len(text.encode()) for text in (*texts, *thoughts))
    return TakeOver(chain, chain.epoch + 1, texts, spoken, size, barren, record.cancel, _opening(mine))


def untold(opening: Opening | None, others: Mapping[str, Beat]) -> bool:
    """Whether its writer lives and has not said since then what it holds: the first beat that tells of a job may be on
    its way, or lost with a connection. Both times are the writer's own."""
    if opening is None:
        return False
    beat = others.get(opening.worker)
    return beat is not None and beat.t <= opening.t


def _opening(mine: Iterable[Frame]) -> Opening | None:
    newest = [frame for frame in mine if frame.type in (START, ATTEMPT)][-1:]
    fields = newest[0].fields() if newest else {}
    worker, t = fields.get("worker"), fields.get("t")
    return Opening(worker, t) if isinstance(worker, str) and isinstance(t, int) else None


def _read(job: Job, frames: Iterable[Frame], last: int) -> tuple[list[Frame], Chain]:
    """This generation's frames, and the end of the log behind them."""
    frames = list(frames)
    if not frames:
        return [], Chain(last)  # everything aged out or nothing ever was: the next frame follows what there is
    chain = Chain(frames[0].prev)
    for frame in frames:
        chain.advance(frame)
    if chain.last != last:
        raise ChainBroken(f"the frames read end at {chain.last}, the log at {last}")
    return [frame for frame in frames if frame.gid == job.gid], chain


def _text(frame: Frame) -> str:
    text = frame.fields().get("text")
    if not isinstance(text, str):
        raise FrameMalformed(f"sequence {frame.seq}: a token without text")
    return text


def _holder(gid: str, others: Mapping[str, Beat]) -> str:
    return next((name for name, beat in others.items() if gid in beat.held), "")

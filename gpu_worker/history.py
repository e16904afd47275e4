"""What a session has said before: read for a takeover, and folded into the context of a new turn."""

from __future__ import annotations

from collections.abc import Iterable

from broker.bus import log
from broker.bus.conversation import Turn, context, fold, of_record
from broker.bus.frames import Frame, decode_frame
from broker.bus.kv import Bucket
from broker.bus.nats import Bus
from broker.bus.records import Generation, Job, Message, decode
from broker.bus.strays import is_stray, last_frame
from broker.bus.subjects import log_stream, log_subject, partition_of


async def frames_behind(bus: Bus, sid: str, after: int) -> tuple[list[Frame], int]:
    """The session's frames behind sequence `after` and its last sequence (0: no frame), as the leader has them.

    Raises BusUnavailable and FrameMalformed.
    """
    stream, subject = log_stream(partition_of(sid)), log_subject(sid)
    end = await last_frame(bus, sid)
    if end is None:
        return [], 0
    if end.seq <= after:
        return [], end.seq
    stored = await log.read_all(bus, stream, subject, after)  # perhaps of a replica that has a stray still
    frames = [decode_frame(one.data, one.seq) for one in stored if not is_stray(one.data)]
    return frames, frames[-1].seq if frames else end.seq


async def prompt_of(bus: Bus, generations: Bucket, job: Job) -> list[Message]:
    """The whole context of a job's turn: what was said before, then its own messages.

    Finished turns come from their records (one read for all of them, and they outlive the log), turns whose record
    is not written yet from the log. Raises BusUnavailable.
    """
    if job.request.whole_context:
        return list(job.request.messages)
    records = await generations.all(f"{job.sid}.*")
    earlier = [decode(entry.value, Generation) for entry in records.values()]
    told = recorded(earlier, job)
    after = max((turn.last_seq for turn in told if turn.last_seq <= job.after), default=0)
    frames: list[Frame] = []
    if job.after > after:
        frames, _ = await frames_behind(bus, job.sid, after)
    logged = fold(frame for frame in frames if frame.seq <= job.after)
    return merge(told, logged) + list(job.request.messages)


def recorded(earlier: Iterable[Generation], job: Job) -> list[Turn]:
    """The finished turns before `job` whose answer is in their record, oldest first.

    By the time of acceptance and not by sequence: sequences start anew with the log's incarnation.
    """
    done = [g for g in earlier if g.id != job.gid and not g.status.open and g.last_seq]
    done.sort(key=lambda g: (g.created_at, g.first_seq))
    return [of_record(g) for g in done]


def merge(told: list[Turn], logged: list[Turn]) -> list[Message]:
    """Context of recorded turns, then of those that only the log has."""
    known = {turn.gid for turn in told}
    return context([*told, *(turn for turn in logged if turn.gid not in known)])

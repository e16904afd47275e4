"""Workers, their queue and OKOME's part of it, over the model of NATS; and what must be true of every frame stored."""

from __future__ import annotations

import msgspec

from broker.bus.chain import Chain
from broker.bus.frames import ATTEMPT, START, TERMINAL, Frame, decode_frame
from broker.bus.records import Generation, Job, Request, Session, Status, decode, encode
from broker.bus.records import Message as Said
from broker.bus.subjects import job_subject, log_subject
from tests.models.consumer_model import ConsumerModel
from tests.models.log_model import MSG_ID, Message, StreamModel
from tests.models.nats_model import NatsModel
from tests.models.virtual_loop import Clock
from tests.models.worker_model import MODEL, WorkerModel, kind_of, text_of

SIDS = ("00aaaaaaaaaaaaaaaaaaaa", "00bbbbbbbbbbbbbbbbbbbb")
STREAM = "TOK_00"


class LogJudge:
    """One session's log, judged as it is written."""

    def __init__(self, sid: str) -> None:
        self.subject = log_subject(sid)
        self.chain = Chain()
        self.frames: dict[int, Frame] = {}  # everything ever stored
        self.ended: dict[str, str] = {}  # gid -> the type of its terminal
        self._emptied = False

    def purged(self) -> None:
        self._emptied = True
        if self.chain.open:
            self.ended.pop(self.chain.gid, None)

    def take(self, payload: bytes, seq: int) -> None:
        frame = decode_frame(payload, seq)
        if self._emptied:
            self.chain = Chain()
            self._emptied = False
            assert frame.type == START, "an emptied log begins with a start"
            self.ended.pop(frame.gid, None)
        self.chain.advance(frame)  # raises ChainBroken
        self.frames[seq] = frame
        if frame.type in TERMINAL:
            assert frame.gid not in self.ended, f"{frame.gid} ended twice"
            self.ended[frame.gid] = frame.type
        if frame.n:
            offsets = range(frame.offset, frame.offset + frame.n)
            said = "".join(text_of(frame.gid, offset) for offset in offsets)
            told = ({kind_of(offset) for offset in offsets}, said)
            assert ({frame.type}, frame.fields()["text"]) == told, f"{frame} is not what the model says there"

    @property
    def attempts(self) -> int:
        return sum(frame.type == ATTEMPT for frame in self.frames.values())


class _JudgedStream(StreamModel):
    """A partition whose sessions are judged."""

    judges: dict[str, LogJudge]

    def store(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> tuple[int, bool]:
        seq, repeated = super().store(subject, data, headers)
        self.judges[subject].take(data, seq)
        return seq, repeated


class FleetModel:
    """NATS with what OKOME provisions, sessions, and any number of workers. `closes`: the model closes the records of
    what has ended; else OKOME must."""

    def __init__(self, *, closes: bool = True) -> None:
        self.clock = Clock()
        self.nats = NatsModel(self.clock)
        self.judges = {sid: LogJudge(sid) for sid in SIDS}
        stream = _JudgedStream(STREAM, "tok.00.*", incarnation="first")
        stream.judges = {judge.subject: judge for judge in self.judges.values()}
        self.log = self.nats.add(stream)
        self.jobs = self.nats.add(StreamModel("JOBS", "job.*.*"))
        for bucket in ("generations", "sessions", "models"):
            self.nats.add(StreamModel(f"KV_{bucket}", f"$KV.{bucket}.>", last_only=True))
        self.workers: list[WorkerModel] = []
        self.open: dict[str, Generation] = {}  # by session
        self.nats.on_verdict = self._judge_verdict
        self._closes = closes
        self._asked = 0

    def frame(self, seq: int) -> Frame | None:
        """What was ever stored under a sequence, in whichever session."""
        return next((judge.frames[seq] for judge in self.judges.values() if seq in judge.frames), None)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.clock.close()

    def _judge_verdict(self, verdict: bytes, message: Message | None) -> None:
        """A job is over when its terminal is in the log, and not before."""
        if message is None or not verdict.startswith(b"+ACK"):
            return
        job = decode(message.data, Job)
        record = self.record(job.sid, job.gid)
        over = job.gid in self.judges[job.sid].ended or record is None or not record.status.open
        assert over, f"the job of {job.gid} was acknowledged before its end"

    # -- OKOME's part ------------------------------------------------------------------------------------------------

    def ask(self, sid: str, *, queued: bool = True) -> None:
        """The next generation of a session, where none is open; without a job where who accepted it died then."""
        judge = self.judges[sid]
        if sid in self.open:
            if self.open[sid].id not in judge.ended:
                return
            if self._closes:
                self._close(sid)
            elif (known := self.record(sid, self.open[sid].id)) is not None and known.status.open:
                return
        self._asked += 1
        gid = f"g{self._asked}"
        after = self.log.last_of(judge.subject)
        request = Request(MODEL, [Said("user", gid)])
        record = Generation(gid, sid, "t", request, created_at=self._asked, after=after)
        self.open[sid] = record
        self.put("generations", f"{sid}.{gid}", record)
        self.put("sessions", f"t.{sid}", Session(sid, "t", 0, 0, MODEL, running=gid))
        if queued:
            self.queue(sid)

    def put(self, bucket: str, key: str, record: msgspec.Struct) -> None:
        self.nats.streams[f"KV_{bucket}"].store(f"$KV.{bucket}.{key}", encode(record))
        self.nats.pump(f"KV_{bucket}")

    def record(self, sid: str, gid: str) -> Generation | None:
        stream = self.nats.streams["KV_generations"]
        found = stream.at(stream.last_of(f"$KV.generations.{sid}.{gid}"))
        return decode(found.data, Generation) if found is not None and found.data else None

    def cancel(self, sid: str) -> None:
        """Asked for in the record; the nudge gets lost."""
        if (record := self.open.get(sid)) and (stored := self.record(sid, record.id)) and stored.status.open:
            self.put("generations", f"{sid}.{record.id}", msgspec.structs.replace(stored, cancel=True))

    def queue(self, sid: str, again: str = "") -> None:
        """The job of the open generation; `again`: a copy, as the sweeper makes them."""
        record = self.open[sid]
        job = Job(record.id, sid, "t", record.request, record.after, 0)
        self.jobs.store(job_subject(MODEL), encode(job), {MSG_ID: f"{record.id}{again}"})
        self.nats.pump("JOBS")

    def _close(self, sid: str) -> None:
        record, judge = self.open.pop(sid), self.judges[sid]
        mine = [frame for frame in judge.frames.values() if frame.gid == record.id]
        text = "".join(frame.fields()["text"] for frame in mine if frame.type == "token")
        status = Status(judge.ended[record.id])
        told = msgspec.structs.replace(
            record, status=status, first_seq=mine[0].seq, last_seq=mine[-1].seq, text=text, ended_at=1
        )
        self.put("generations", f"{sid}.{record.id}", told)

    @property
    def queues(self) -> list[ConsumerModel]:
        return [consumer for consumer in self.nats.consumers.values() if consumer.stream is self.jobs]

"""One session's log as it is really written: legal frames in every order that the chain allows, and what is true of
them. Whatever readers show is held against this."""

from __future__ import annotations

from broker.bus.chain import Chain
from broker.bus.frames import (
    ATTEMPT,
    CANCELLED,
    DONE,
    EXPIRED,
    REASONING,
    START,
    TOKEN,
    USAGE,
    Frame,
    decode_frame,
    encode_frame,
    encode_tokens,
)
from broker.bus.subjects import Cursor, log_subject
from tests.models.log_model import FENCE, StreamModel
from tests.models.nats_model import NatsModel

SID = "00aaaaaaaaaaaaaaaaaaaa"
STREAM = "TOK_00"


class SessionModel:
    """Writes with `write`; `frames` is everything that was ever in the log, by incarnation and sequence."""

    def __init__(self, nats: NatsModel, sid: str = SID) -> None:
        self.sid = sid
        self.subject = log_subject(sid)
        self.frames: dict[tuple[str, int], Frame] = {}
        self.changes = 0  # how often something was taken away from the log
        self._nats = nats
        self._chain = Chain()
        self._generations = 0

    @property
    def stream(self) -> StreamModel:
        return self._nats.streams[STREAM]

    @property
    def incarnation(self) -> str:
        return self.stream.incarnation

    @property
    def stored(self) -> list[Frame]:
        """What is in the log now."""
        return [self.frames[self.incarnation, message.seq] for message in self.stream.of(self.subject)]

    @property
    def last(self) -> int:
        return self.stream.last_of(self.subject)

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, choice: int) -> None:
        """The next frame; `choice` says which of those that may follow. Most are tokens, so that answers have some."""
        chain = self._chain
        gid, epoch, attempt, offset = chain.gid, chain.epoch, chain.attempt, chain.next_offset
        if not chain.open:
            self._generations += 1
            said = {"epoch": 1, "model": "m", "worker": "w", "input": [{"role": "user", "content": "hi"}], "t": 1}
            self._put(encode_frame(START, f"g{self._generations}", 1, "a1", self.last, 0, 0, said))
            return
        match choice % 12:
            case 0:
                self._put(
                    encode_frame(DONE, gid, epoch, attempt, self.last, offset, 0, {"finish_reason": "stop", "t": 1})
                )
            case 1:
                said = {"epoch": epoch + 1, "worker": f"w{epoch}", "t": 1}
                self._put(encode_frame(ATTEMPT, gid, epoch + 1, f"a{epoch + 1}", self.last, offset, 0, said))
            case 2:
                self._put(encode_frame(EXPIRED, gid, epoch + 1, "sweeper", self.last, offset, 0, {"t": 1}))
            case 3:
                self._put(encode_frame(CANCELLED, gid, epoch, attempt, self.last, offset, 0, {"t": 1}))
            case 4:
                usage = {"prompt_tokens": 1, "completion_tokens": offset}
                self._put(encode_frame(USAGE, gid, epoch, attempt, self.last, offset, 0, usage))
            case number:
                n = 1 + number % 3
                kind = REASONING if number == 5 else TOKEN
                self._put(encode_tokens(kind, gid, epoch, attempt, self.last, offset, n, f"{self.stream.last_seq} é\n"))

    def _put(self, payload: bytes) -> None:
        seq, _ = self.stream.store(self.subject, payload, {FENCE: str(self.last)})
        frame = decode_frame(payload, seq)
        self._chain.advance(frame)
        self.frames[self.incarnation, seq] = frame
        self._nats.pump(STREAM)

    # -- taking away -------------------------------------------------------------------------------------------------

    def purge(self, keep: int) -> None:
        """All but the newest `keep` frames are gone. Whoever wrote into an emptied log stops; the next turn begins."""
        if len(self.stored) <= keep:
            return
        self.changes += 1
        self.stream.purge(self.subject, keep)
        if not keep:
            self._chain = Chain()

    def replaced(self) -> None:
        """The stream was made anew."""
        self.changes += 1
        self._chain = Chain()

    def restored(self) -> None:
        """The stream is an older copy of itself: what is left of the log is known under the new incarnation, too."""
        self.changes += 1
        self._chain = Chain()
        for message in self.stream.of(self.subject):
            frame = self.frames[self.incarnation, message.seq] = decode_frame(message.data, message.seq)
            if not self._chain.last:
                self._chain = Chain(frame.prev)
            self._chain.advance(frame)

    # -- what is true ------------------------------------------------------------------------------------------------

    def honourable(self, incarnation: str, seq: int) -> bool | None:
        """Whether whoever has everything up to `seq` can be given all that follows. None: an emptied log, of which
        nobody can tell any more whether this was its end; either answer is honest."""
        if incarnation != self.incarnation:
            return False
        stored = self.stored
        if not stored:
            return True if seq == 0 else None if (incarnation, seq) == self._end_of_history() else False
        if seq == self.last:
            return True
        behind = next((frame for frame in stored if frame.seq > seq), None)
        return behind is not None and behind.prev == seq

    def ends_at(self, place: Cursor) -> bool:
        """Whether nothing is left to be told to whoever was told everything up to there. Of what was taken away before
        it was delivered nothing tells until something is written again."""
        if not self.stored:
            return place.incarnation == self.incarnation
        return self.honourable(*place) is True and self.last <= place.sequence

    def _end_of_history(self) -> tuple[str, int]:
        return max((place for place in self.frames if place[0] == self.incarnation), default=(self.incarnation, 0))

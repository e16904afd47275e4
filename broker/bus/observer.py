"""Which workers are dead, as one observer sees it: beats in, naks out. Pure; time is an argument.

Workers and OKOME replicas all observe, so that either may be away. An observer answers for not being wrong cheaply: a
stale nak takes a job from its holder. It must not know how beats arrive or naks leave. Times are seconds of the
observer's own monotonic clock; nobody's wall clock is compared.

The rules (architecture.md, Jobs), each in its own function below:

- silent for 1 s, and the observer could hear all the while: its NATS round trip works, its own beats came back in time,
  and it was not stopped itself
- not when several workers, half of them or more, fell silent together: then it is the network or the machine
- only the first-ranked live observer naks, and only the newest delivery that anybody was heard to hold
- the same worker id beating as another instance: the first instance is dead, whatever the time
"""

from __future__ import annotations

from typing import NamedTuple

from broker.bus.beats import Parts
from broker.bus.pull import parse_reply
from broker.bus.records import Beat

SILENCE = 1.0  # without a beat: suspected
OVERDUE = 0.5  # two beats missed: counts as falling silent together with one that is suspected
STOPPED = 0.5  # asked this much later than before: the observer itself stood still, beats wait in its socket
STALLED = 0.5  # so long no beat of its own came back: NATS stood still, and reads others' sockets when it likes
STALE = 5.0  # silent for longer: whoever was to nak has done it; a nak now would be a stale one
FORGOTTEN = 60.0  # beyond any ack_wait: JetStream has delivered again by itself


class Nak(NamedTuple):
    """Give this delivery back to the queue: publish `-NAK` to `reply`."""

    reply: str
    gid: str
    worker: str


class _Heard:
    """The last beat of one beater, and whether its silence has been dealt with."""

    __slots__ = ("at", "beat", "done")

    def __init__(self, beat: Beat, at: float) -> None:
        self.beat = beat
        self.at = at
        self.done = False


class Observer:
    """One observer. `id` is the name under which it beats itself, and by which it is ranked."""

    def __init__(self, id: str) -> None:
        self.id = id
        self._heard: dict[str, _Heard] = {}
        self._replaced: dict[str, float] = {}  # instances known dead -> since when
        self._dead: list[tuple[Beat, float]] = []  # last beats of replaced instances, until `suspects` names their jobs
        self._hearing_since = float("-inf")  # beats before this may have been missed
        self._asked_at: float | None = None
        self._echoed_at: float | None = None
        self._deaf = False
        self._parts = Parts()

    def on_beat(self, beat: Beat, now: float) -> bool:
        """Hear a beat, or a part of one. True: an instance was replaced, `suspects` has something to say at once."""
        if beat.worker == self.id or beat.instance in self._replaced:
            return False
        if beat.more:
            self._add(beat, now)
            return False
        whole = self._parts.take(beat)
        if whole is None:
            return False
        beat = whole
        heard = self._heard.get(beat.worker)
        self._heard[beat.worker] = _Heard(beat, now)
        if heard is None or heard.beat.instance == beat.instance:
            return False
        self._replaced[heard.beat.instance] = now
        if heard.beat.held and not heard.done:
            self._dead.append((heard.beat, now))
            return True
        return False

    def on_echo(self, now: float) -> None:
        """A beat of its own came back. One that took long was sent to a server that stood still, and what others sent
        meanwhile may come behind it."""
        if self._echoed_at is not None and now - self._echoed_at > STALLED:
            self._hearing_since = now
        self._echoed_at = now

    @property
    def hearing_since(self) -> float:
        """Since when beats have reached it without interruption, as far as it knows."""
        return self._hearing_since

    def _add(self, beat: Beat, now: float) -> None:
        """Jobs taken since the last whole beat; without that one nobody knows of whom they are more."""
        heard = self._heard.get(beat.worker)
        if heard is not None and heard.beat.instance == beat.instance and not heard.done:
            heard.beat.held.update(beat.held)
            heard.at = now

    def suspects(self, now: float, round_trip_ok: bool) -> list[Nak]:
        """The deliveries to give back now, each told once. Ask several times a second, with or without news."""
        self._listen(now, round_trip_ok)
        if self._deaf:
            return []
        self._forget(now)
        naks: list[Nak] = []
        for beat, _ in self._dead:
            if self._first(now, beat.worker):
                naks += self._newest(beat)
        self._dead.clear()
        for worker, heard in self._heard.items():
            silence = self._silence(heard, now)
            if heard.done or silence <= SILENCE or self._together(heard, now):
                continue
            if silence > STALE:
                heard.done = True
            elif self._first(now, worker):
                heard.done = True
                naks += self._newest(heard.beat)
        return naks

    def doubts(self, now: float) -> bool:
        """Whether somebody has been silent for long enough to be suspected: time to prove that one can hear at all. A
        round trip that worked a second ago proves nothing of the second since."""
        return any(not heard.done and self._silence(heard, now) > SILENCE for heard in self._heard.values())

    def live(self, now: float) -> list[str]:
        """Everybody who beats, itself among them, sorted: the ranking."""
        return sorted([self.id, *(name for name, heard in self._heard.items() if self._silence(heard, now) <= SILENCE)])

    def beats(self, now: float, within: float = SILENCE) -> dict[str, Beat]:
        """The last beats not older than `within` seconds, by beater."""
        return {name: heard.beat for name, heard in self._heard.items() if now - heard.at <= within}

    def _listen(self, now: float, round_trip_ok: bool) -> None:
        """A deaf time is nobody's silence: after it every silence is counted anew."""
        stopped = self._asked_at is not None and now - self._asked_at > STOPPED
        if stopped or not round_trip_ok or self._deaf:
            self._hearing_since = now
        self._asked_at = now
        self._deaf = not round_trip_ok

    def _silence(self, heard: _Heard, now: float) -> float:
        return now - max(heard.at, self._hearing_since)

    def _together(self, heard: _Heard, now: float) -> bool:
        """Whether several workers, half of them or more, fell silent with this one."""
        silent = alive = 0
        for other in self._heard.values():
            if not other.beat.models:
                continue  # an OKOME replica: it observes, but is no worker
            if now - other.at <= OVERDUE:
                alive += 1
            elif abs(other.at - heard.at) <= SILENCE:
                silent += 1
        return silent >= 2 and silent >= alive

    def _first(self, now: float, suspect: str) -> bool:
        return next(name for name in self.live(now) if name != suspect) == self.id

    def _newest(self, beat: Beat) -> list[Nak]:
        """The jobs of a dead worker that nobody else was heard to hold under a newer delivery."""
        others = [heard.beat.held for heard in self._heard.values() if heard.beat is not beat]
        naks = []
        for gid, reply in beat.held.items():
            mine = delivery_order(reply)
            if not any(gid in held and delivery_order(held[gid]) >= mine for held in others):
                naks.append(Nak(reply, gid, beat.worker))
        return naks

    def _forget(self, now: float) -> None:
        for name in [name for name, heard in self._heard.items() if now - heard.at > FORGOTTEN]:
            del self._heard[name]
            self._parts.forget(name)
        for instance in [instance for instance, at in self._replaced.items() if now - at > FORGOTTEN]:
            del self._replaced[instance]


def delivery_order(reply: str) -> tuple[int, int]:
    """Orders deliveries of one job by their ack subject: (stream sequence, how often delivered).

    What is no ack subject comes before everything.
    """
    delivered = parse_reply(reply)
    return (delivered.seq, delivered.attempts) if delivered else (-1, -1)

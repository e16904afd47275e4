"""A NATS server in memory, below the real connection: everything above nats-py's client is production code.

It answers what this project asks of JetStream, from reference streams and consumers. Between client and server stands
a wire, which a model may hold, shorten and lengthen: `holds` says which messages wait for `let_go`, `latency` how long
the others take. The wire keeps the order of each direction of a connection, as TCP does.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

from broker.bus.log import NO_MESSAGE, STREAM_NOT_FOUND
from broker.bus.nats import Bus
from tests.models.client_model import BusModel, ClientModel, Sent
from tests.models.consumer_model import ConsumerModel
from tests.models.log_model import Message, Refused, StreamModel, matches
from tests.models.virtual_loop import Clock, VirtualLoop


class NatsModel:
    """The server. `lag`: how many of the newest messages the replica lacks that answers the next direct get."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.streams: dict[str, StreamModel] = {}
        self.consumers: dict[str, ConsumerModel] = {}  # by "<stream>.<name>"
        self.clients: list[ClientModel] = []
        self.held: list[Sent] = []
        self.down = False  # JetStream does not answer
        self.holds: Callable[[Sent], bool] = lambda sent: False
        self.latency: Callable[[], float] = lambda: 0.0
        self.on_verdict: Callable[[bytes, Message | None], None] = lambda verdict, job: None
        self.lag: Callable[[], int] = lambda: 0
        self._read_at: dict[ClientModel, float] = {}  # what they send meanwhile is read then
        self.loop = clock.loop()
        self._due = float("inf")
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: StreamModel) -> StreamModel:
        """Make a stream, or make it anew: whatever consumed the one before is gone without a word."""
        self.streams[stream.name] = stream
        for key in [key for key in self.consumers if key.startswith(f"{stream.name}.")]:
            del self.consumers[key]
        return stream

    def connect(self, loop: VirtualLoop, name: str) -> Bus:
        """The real connection over this server, as `Bus.connect` makes it."""
        client = ClientModel(self, loop)
        self.clients.append(client)
        bus = BusModel(client, name)
        client.bus = bus
        client.listen(bus._inbox + "*", bus._on_reply)
        bus._heard_at = self.clock.now

        async def watch() -> None:
            bus._watch = asyncio.create_task(bus._watchdog())

        self.clock.run(loop, watch())
        return bus

    def client_of(self, bus: Bus) -> ClientModel:
        return next(client for client in self.clients if client.bus is bus)

    # -- the wire ----------------------------------------------------------------------------------------------------

    def sent(self, sent: Sent) -> None:
        if self.holds(sent):
            self.held.append(sent)
        else:
            wait = self._read_at.get(sent.client, 0.0) - self.clock.now
            sent.client.up(max(self.latency(), wait), sent)

    def stand_still(self, seconds: float, last: ClientModel, by: float) -> None:
        """The server does nothing for so long; then it reads what clients have sent, `last` by so much later."""
        self._read_at = {last: self.clock.now + seconds + by}
        self.loop.frozen = True
        self.clock.advance(seconds)
        self.loop.frozen = False

    def let_go(self, index: int, *, keep: bool = False, answered: bool = True) -> None:
        """A held message arrives; with `keep` a copy of it will arrive once more; its answer may get lost."""
        sent = self.held[index] if keep else self.held.pop(index)
        self.arrive(sent if answered else sent._replace(reply=""))

    def say(self, to: str, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """To everybody who listens at `to`; nobody is told that nobody does."""
        for client in self.clients:
            client.down(self.latency(), to, subject, data, reply, headers)

    # -- the server --------------------------------------------------------------------------------------------------

    def arrive(self, sent: Sent) -> None:
        subject = sent.subject
        if subject.startswith("$JS.API."):
            if not self.down:
                self._api(sent, subject.removeprefix("$JS.API."), json.loads(sent.data) if sent.data else {})
        elif subject.startswith("$JS.ACK."):
            self._ack(sent)
        elif (stream := self._stream_for(subject)) is not None:
            if not self.down:
                self._store(sent, stream)
        else:
            self.say(subject, subject, sent.data, sent.reply, sent.headers)

    def _stream_for(self, subject: str) -> StreamModel | None:
        return next((stream for stream in self.streams.values() if matches(stream.subjects, subject)), None)

    def _store(self, sent: Sent, stream: StreamModel) -> None:
        try:
            seq, repeated = stream.store(sent.subject, sent.data, sent.headers)
        except Refused as refused:
            self._answer(sent, {"error": refused.answer})
            return
        self._answer(sent, {"stream": stream.name, "seq": seq, **({"duplicate": True} if repeated else {})})
        self.pump(stream.name)

    def pump(self, stream: str) -> None:
        """Something may be deliverable in a stream."""
        for consumer in list(self.consumers.values()):
            if consumer.stream.name == stream:
                consumer.pump(self.clock.now, self.say)
        self._wind()

    def _wind(self) -> None:
        """Be called when the next heartbeat, or unacknowledged job, is due."""
        due = min((consumer.due(self.clock.now) for consumer in self.consumers.values()), default=float("inf"))
        if due < self._due or self._due <= self.clock.now:
            self._due = due
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(due, self._tick) if due < float("inf") else None

    def _tick(self) -> None:
        for consumer in list(self.consumers.values()):
            consumer.tick(self.clock.now, self.say)
        self._wind()

    def _ack(self, sent: Sent) -> None:
        tokens = sent.subject.split(".")
        consumer = self.consumers.get(f"{tokens[2]}.{tokens[3]}")
        if consumer is None:
            return
        self.on_verdict(sent.data, consumer.stream.at(int(tokens[5])))
        consumer.answered(int(tokens[5]), sent.data, self.clock.now)
        if sent.reply:
            self.say(sent.reply, sent.reply, b"")
        self.pump(tokens[2])

    def _api(self, sent: Sent, verb: str, body: dict[str, Any]) -> None:
        if verb == "INFO":
            self._answer(sent, {})
            return
        topic, _, rest = verb.partition(".")
        words = rest.split(".")
        name = words[-1] if topic != "CONSUMER" else words[2] if words[0] == "MSG" else words[1]
        stream = self.streams.get(name)
        if stream is None:
            unknown = {"code": 404, "err_code": STREAM_NOT_FOUND, "description": "stream not found"}
            self._answer(sent, {"error": unknown})
            return
        match topic, *words:
            case "STREAM", "MSG", "GET", _:
                self._answer(sent, self._message(stream, body))
            case "STREAM", "MSG", "DELETE", _:
                gone = {"error": {"code": 404, "err_code": 10043, "description": "not found"}}
                self._answer(sent, {"success": True} if stream.delete(body["seq"]) else gone)
            case "STREAM", "INFO", _:
                self._answer(sent, _info(stream, body.get("subjects_filter", "")))
            case "DIRECT", "GET", _:
                self._direct(sent, stream, body)
            case "CONSUMER", "CREATE", _, consumer, *_:
                made = self.consumers.setdefault(f"{name}.{consumer}", ConsumerModel(stream, consumer, body["config"]))
                delivered = {"consumer_seq": made.seq, "stream_seq": made.after}
                self._answer(sent, {"name": consumer, "delivered": delivered, "num_pending": made.pending})
            case "CONSUMER", "MSG", "NEXT", _, consumer:
                if (asked := self.consumers.get(f"{name}.{consumer}")) is not None:
                    asked.pull(sent.reply, self.clock.now, self.say, **body)
                    self.pump(name)
                else:
                    self.say(sent.reply, sent.reply, b"", "", {"Status": "503"})
            case "CONSUMER", "DELETE", _, consumer:
                self.consumers.pop(f"{name}.{consumer}", None)
                self._answer(sent, {"success": True})
            case "CONSUMER", "INFO", _, consumer:
                none = {"error": {"code": 404, "err_code": 10014, "description": "consumer not found"}}
                self._answer(sent, {} if f"{name}.{consumer}" in self.consumers else none)
            case "CONSUMER", "LIST", _:
                known = [consumer.info() for key, consumer in self.consumers.items() if key.startswith(f"{name}.")]
                self._answer(sent, {"total": len(known), "consumers": known[body["offset"] :]})
            case _:
                raise AssertionError(f"the model does not know {verb}")

    def _message(self, stream: StreamModel, body: dict[str, Any]) -> dict[str, Any]:
        if subject := body.get("last_by_subj"):
            found = stream.at(stream.last_of(subject))
        elif filter := body.get("next_by_subj"):
            found = next(stream.of(filter, body["seq"] - 1), None)
        else:
            found = stream.at(body["seq"])
        if found is None:
            return {"error": {"code": 404, "err_code": NO_MESSAGE, "description": "no message found"}}
        message: dict[str, Any] = {"seq": found.seq, "subject": found.subject}
        message["data"] = base64.b64encode(found.data).decode()
        if found.headers:
            lines = "".join(f"{name}: {text}\r\n" for name, text in found.headers.items())
            message["hdrs"] = base64.b64encode(f"NATS/1.0\r\n{lines}\r\n".encode()).decode()
        return {"message": message}

    def _direct(self, sent: Sent, stream: StreamModel, body: dict[str, Any]) -> None:
        if "multi_last" in body:
            newest: dict[str, Message] = {}
            for filter in body["multi_last"]:
                newest |= {message.subject: message for message in stream.of(filter)}
            found = sorted(newest.values())
        else:
            found = list(stream.of(body["next_by_subj"], body["seq"] - 1, lag=self.lag()))[: body["batch"]]
        for message in found:
            fields = {**(message.headers or {}), "Nats-Sequence": str(message.seq), "Nats-Subject": message.subject}
            self.say(sent.reply, sent.reply, message.data, "", fields)
        end = {"Status": "204", "Nats-Num-Pending": "0"} if found else {"Status": "404"}
        self.say(sent.reply, sent.reply, b"", "", end)

    def _answer(self, sent: Sent, answer: dict[str, Any]) -> None:
        if sent.reply:
            self.say(sent.reply, sent.reply, json.dumps(answer).encode())


def _info(stream: StreamModel, subjects: str) -> dict[str, Any]:
    counted: dict[str, int] = {}
    for message in stream.of(subjects) if subjects else ():
        counted[message.subject] = counted.get(message.subject, 0) + 1
    return {
        "config": {"metadata": {"incarnation": stream.incarnation}, "max_bytes": -1},
        "created": stream.created,
        "state": {
            "first_seq": stream.messages[0].seq if stream.messages else stream.last_seq + 1,
            "last_seq": stream.last_seq,
            "messages": len(stream.messages),
            "bytes": 0,
            "subjects": counted,
        },
    }

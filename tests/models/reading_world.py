"""What may happen between a log and those who read it: two real nodes over a NATS that loses deliveries and whole
consumers, whose replicas lag and whose leader falls silent, while clients join, stop reading and change nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.node.start import Start
from tests.models.nats_model import NatsModel
from tests.models.node_model import NodeModel, partition
from tests.models.session_model import SessionModel
from tests.models.viewer_model import ViewerModel
from tests.models.virtual_loop import Clock

OTHER = "00bbbbbbbbbbbbbbbbbbbb"
HEALED = 8.0  # seconds in which whatever was broken must have been noticed and mended
MAX_VIEWERS = 4


class ReadingWorld(RuleBasedStateMachine):
    """The rules that every model of reading has. A model says how clients `start`, and what must be true of resets."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.nats = NatsModel(self.clock)
        self.loop = self.clock.loop()
        partition(self.nats)
        self.session = SessionModel(self.nats)
        self.other = SessionModel(self.nats, OTHER)
        self.nodes: list[NodeModel] = []
        self.viewers: list[ViewerModel] = []
        self.last = ""  # how the very last frame gets lost on its way to a node

    def start(self, place: int) -> Start:
        raise NotImplementedError

    @initialize(
        latencies=st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.004, 0.02]), min_size=1, max_size=6),
        lags=st.lists(st.integers(0, 6), min_size=1, max_size=5),
        memory=st.sampled_from([3000, 1 << 20]),
        before=st.lists(st.integers(0, 11), max_size=20),
        last=st.sampled_from(["", "lose", "skip"]),
    )
    def begin(self, latencies: list[float], lags: list[int], memory: int, before: list[int], last: str) -> None:
        self.last = last
        self.nats.latency = itertools.cycle(latencies).__next__
        self.nats.lag = itertools.cycle(lags).__next__
        self.nodes = [NodeModel(self.nats, self.loop, name, partition_bytes=memory) for name in ("n1", "n2")]
        for choice in before:
            self.session.write(choice)
        for node, free in ((0, True), (1, False)):
            self.join(len(before), node, paced=free)
            if free:
                self.viewers[0].free()
        self.clock.advance(0.2)

    @rule(
        choices=st.lists(st.integers(0, 11), min_size=1, max_size=6),
        others=st.integers(0, 2),
        lost=st.sampled_from(["", "", "lose", "skip"]),
        which=st.integers(0, 5),
    )
    def write(self, choices: list[int], others: int, lost: str, which: int) -> None:
        """The last delivery may get lost: on the wire, or in a way that the consumer's count does not show."""
        for number, choice in enumerate(choices, 1):
            for _ in range(others):
                self.other.write(7)
            if lost and number == len(choices) and self.nats.consumers:
                setattr(list(self.nats.consumers.values())[which % len(self.nats.consumers)], lost, 1)
            self.session.write(choice)

    @precondition(lambda self: len(self.viewers) < MAX_VIEWERS)
    @rule(place=st.integers(0, 1000), node=st.integers(0, 1), paced=st.booleans())
    def join(self, place: int, node: int, paced: bool) -> None:
        nodes = self.nodes[node:] + self.nodes[:node]
        self.viewers.append(ViewerModel(self.session, nodes, self.start(place), paced=paced))

    @precondition(lambda self: self.viewers)
    @rule(which=st.integers(0, MAX_VIEWERS - 1), what=st.sampled_from(["allow", "allow", "free", "move", "leave"]))
    def client(self, which: int, what: str) -> None:
        """It reads on; it reads everything from now on; its connection is cut; its node leaves."""
        getattr(self.viewers[which % len(self.viewers)], what)()

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.01, 0.06, 0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(turns=st.integers(1, 6))
    def turns(self, turns: int) -> None:
        """A moment in which not everybody gets as far as waiting."""
        for _ in range(turns):
            self.loop.turn()

    @precondition(lambda self: self.nats.consumers)
    @rule(which=st.integers(0, 5), told=st.booleans())
    def consumer_dies(self, which: int, told: bool) -> None:
        """With its server, without a word, or with one."""
        consumer = self.nats.consumers.pop(list(self.nats.consumers)[which % len(self.nats.consumers)])
        if told:
            consumer.deleted(self.nats.say)

    @rule(which=st.integers(0, 1))
    def connection_breaks(self, which: int) -> None:
        client = self.nats.client_of(self.nodes[which].bus)
        client.cut()
        client.join()

    @rule(down=st.booleans())
    def leader(self, down: bool) -> None:
        self.nats.down = down

    @rule(which=st.integers(0, 1))
    def memory_is_needed(self, which: int) -> None:
        """Every ring gives back what it may."""
        tail = self.nodes[which].tail
        if tail is not None:
            limit, tail._settings = tail._settings, tail._settings.model_copy(update={"partition_bytes": 0})
            tail._evict()
            tail._settings = limit

    @invariant()
    def nobody_was_told_anything_wrong(self) -> None:
        """What was judged while it was told; a client whose judgement failed has ended."""
        for viewer in self.viewers:
            if viewer.task.done():
                viewer.task.result()

    def wait(self, until: Callable[[], bool]) -> None:
        """At most as long as it may take to notice and mend what was broken."""
        end = self.clock.now + HEALED
        while not until() and self.clock.now < end:
            self.clock.advance(0.25)

    def heal(self) -> None:
        """Nothing is broken any more, and the nodes know it."""
        self.nats.down = False
        for consumer in self.nats.consumers.values():
            consumer.lose = consumer.skip = 0
        self.wait(lambda: all(self.knows(node) for node in self.nodes))

    def knows(self, node: NodeModel) -> bool:
        tail, stream = node.tail, self.session.stream
        if tail is None or tail._follow is None:
            return tail is None
        return tail._begun and tail.incarnation == stream.incarnation and tail._follow.seq >= stream.last_seq

    def in_the_end(self) -> None:
        """Everything heals: then every client has everything, and the rings have counted their memory right."""
        for viewer in self.viewers:
            viewer.free()
        self.heal()
        if self.last:
            self.write([7], 0, self.last, 0)  # nothing behind it shows that it was lost
        self.wait(self.complete)
        self.nobody_was_told_anything_wrong()
        for viewer in self.viewers:
            # As in `ends_at`: of what was purged before it was delivered nothing tells until the next frame.
            assert viewer.told.caught_up or not self.session.stored, f"history has not ended: {viewer.told.names}"
            assert self.session.ends_at(viewer.told.place), f"the end is missing: {viewer.told.names}"
        for node in self.nodes:
            if node.tail is not None:
                assert node.tail._bytes == sum(ring.size for ring in node.tail._rings.values())

    def complete(self) -> bool:
        """Whether everybody has been told everything, or somebody something wrong."""
        told = [viewer.told for viewer in self.viewers]
        return all(one.caught_up and self.session.ends_at(one.place) for one in told) or any(
            viewer.task.done() for viewer in self.viewers
        )

    def teardown(self) -> None:
        try:
            if self.nodes:
                self.in_the_end()
        finally:
            for viewer in self.viewers:
                viewer.close()
            for node in self.nodes:
                self.clock.run(self.loop, node.close())
            self.clock.close()

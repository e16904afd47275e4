"""One generation being written: what its engine is asked at a takeover. Its terminals and failures: test_worker.py."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

import msgspec

from broker.bus.frames import ATTEMPT, DONE, START, TOKEN, encode_frame, encode_tokens
from broker.bus.log import store
from gpu_worker.engines import EngineFailed, Finish, ModelCard, Piece, Prefix, Prompt, Say, Tap
from gpu_worker.engines.engine import DRY, unsaid
from tests.gpu_worker.bed import SID, Bed


class Asked:
    """An engine that keeps what it was asked to go on from, says one piece more and breaks, then ends."""

    cards = (ModelCard("asked", 1_000, 4, 4, "asked", None),)

    def __init__(self) -> None:
        self.prefixes: list[Prefix] = []

    async def start(self, say: Say = unsaid) -> None: ...

    async def close(self) -> None: ...

    def children(self) -> list[tuple[str, int]]:
        return []

    async def generate(self, model: str, prompt: Prompt, prefix: Prefix) -> AsyncGenerator[Piece | Finish, None]:
        self.prefixes.append(prefix)
        if len(self.prefixes) == 1:
            yield Piece("\n", 1)
            raise EngineFailed("engine_failed", "it breaks", retryable=True)
        yield Finish("stop", 1, prefix.tokens)


async def test_the_engine_goes_on_from_the_frames_and_not_from_a_text(bed: Bed) -> None:
    """Where a frame ends a token ends, after a death as after a failure of its own: joined, the text hides that."""
    start = {"epoch": 1, "model": "asked", "worker": "dead", "input": [], "t": 0}
    subject = f"tok.00.{SID}"
    end = await store(bed.bus, subject, encode_frame(START, "g1", 1, "dead0000", 0, 0, 0, start), expect_last=0)
    for offset, n, said in ((0, 2, "Hello."), (2, 1, "\n")):
        frame = encode_tokens(TOKEN, "g1", 1, "dead0000", end, offset, n, said)
        end = await store(bed.bus, subject, frame, expect_last=end)
    engine = Asked()
    async with bed.worker("w1", engine):
        await bed.enqueue(await bed.ask("g1", [], model="asked", after=0, enqueue=False))
        assert (await bed.ended("g1")).type == DONE
    assert engine.prefixes == [Prefix(("Hello.", "\n"), 3, 3), Prefix(("Hello.", "\n", "\n"), 4, 4)]
    assert [frame.epoch for frame in bed.of("g1") if frame.type == ATTEMPT] == [2, 3]


class Leaving(Asked):
    """An engine that leaves its tokens where they are until they are drawn, and says nothing twice."""

    unread = False

    async def pour(self, model: str, prompt: Prompt, prefix: Prefix, take: Callable[[Piece], None], tap: Tap) -> Finish:
        self.tap, self.left, self.draws, self.take = tap, deque[Piece](), 0, take
        self.dry = asyncio.Event()
        tap.source = self
        for number in range(100):
            self.left.append(Piece(f"{number} ", 1))
            if not self.unread:
                self.unread = True
                assert tap.on_unread is not None
                tap.on_unread()
            await asyncio.sleep(0)
        if self.left:
            self.dry.clear()
            await self.dry.wait()
        tap.source = DRY
        return Finish("stop", 1, 100)

    def draw(self) -> bool:
        self.unread = False
        self.draws += 1
        while self.left:
            self.take(self.left.popleft())
        self.dry.set()
        return False


async def test_what_an_engine_leaves_is_drawn_for_whole_frames(bed: Bed) -> None:
    engine = Leaving()
    async with bed.worker("w1", engine):
        await bed.enqueue(await bed.ask("g1", [], model="asked", after=0, enqueue=False))
        assert (await bed.ended("g1")).type == DONE
    tokens = [frame for frame in bed.of("g1") if frame.type == TOKEN]
    assert "".join(msgspec.json.decode(frame.data)["text"] for frame in tokens).split() == list(map(str, range(100)))
    assert len(tokens) == engine.draws < 100
    assert engine.tap.on_unread is None

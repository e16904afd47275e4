"""How long answers wait for a slot where they are asked for at random, and several workers have a few slots each.

    python -m bench.waiting

A whole system with its `scripted` engine, answers of random lengths, two thirds of all slots taken on average. Beside
what is measured stands what the same answers would wait with slots as they are and nothing else taking time: in one
queue for all of them, and in one for each worker, to which they go in turn.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

from bench.ours import up
from broker.bus.script import Script
from compose.chaos.http import Connection, call

WORKERS, SLOTS = 4, 3
SECONDS, MEAN = 60.0, 1.0  # of asking, and of an answer
BUSY = 2 / 3
RATE = 20.0  # tokens a second
ANSWER_TIMEOUT = 60.0
SEED = 5

Asked = Sequence[tuple[float, float]]
"""When each answer is asked for, and how many seconds it takes."""


def asked() -> Asked:
    rng, at, found = random.Random(SEED), 0.0, []
    while (at := at + rng.expovariate(WORKERS * SLOTS * BUSY / MEAN)) < SECONDS:
        found.append((at, max(1, round(rng.expovariate(1 / MEAN) * RATE)) / RATE))
    return found


def waits(answers: Asked, slots: int) -> list[float]:
    """What each waits for a slot, first come, first served."""
    free = [0.0] * slots
    found = []
    for at, lasts in answers:
        begins = max(at, heapq.heappop(free))
        heapq.heappush(free, begins + lasts)
        found.append(begins - at)
    return found


async def measured(answers: Asked) -> list[float]:
    """Seconds from each request to its first token. Raises OSError, TimeoutError, NotStarted."""
    with tempfile.TemporaryDirectory(prefix="okome-bench-", ignore_cleanup_errors=True) as name:
        argv = ["--engine", "scripted", "--workers", str(WORKERS)]
        async with up(Path(name), argv, {"OKOME_WORKER_SCRIPTED_SLOTS": str(SLOTS)}) as told:
            url, key = told["url"], told["api_key"]
            sids = [(await call(url, "POST", "/v1/sessions", key, {})).json()["session_id"] for _ in answers]
            began, tasks = time.perf_counter(), []
            for sid, (at, lasts) in zip(sids, answers, strict=True):
                await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
                tasks.append(asyncio.create_task(_first(url, key, sid, lasts)))
            return list(await asyncio.gather(*tasks))


async def _first(url: str, key: str, sid: str, lasts: float) -> float:
    prompt = msgspec.json.encode(Script(tokens=round(lasts * RATE), rate=RATE)).decode()
    body = msgspec.json.encode({"model": "scripted", "prompt": prompt})
    fields = {
        "authorization": f"Bearer {key}",
        "accept": "text/event-stream",
        "content-type": "application/json",
        "connection": "close",
    }
    began, first, said = time.perf_counter(), None, b""
    async with asyncio.timeout(ANSWER_TIMEOUT):
        answer = await Connection.open(url, "POST", f"/v1/sessions/{sid}/generations", fields, body)
        try:
            while part := await answer.chunk():
                said += part
                if first is None and b"event: token\n" in said:
                    first = time.perf_counter() - began
        finally:
            answer.close()
    if first is None:
        raise ConnectionError(f"{answer.status} {said[:200]!r}")
    return first


def told(found: Sequence[float]) -> str:
    ordered = sorted(found)
    p50, p90, p99 = (1000 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.9, 0.99))
    return f"{p50:7.0f} {p90:7.0f} {p99:7.0f} {1000 * ordered[-1]:7.0f}"


async def main() -> None:
    answers = asked()
    print(f"{len(answers)} answers, {WORKERS} workers of {SLOTS} slots, ms:   p50     p90     p99    most")
    print(f"{'to the first token, measured':40} {told(await measured(answers))}", flush=True)
    print(f"{'for a slot, one queue for all':40} {told(waits(answers, WORKERS * SLOTS))}")
    apart = [wait for number in range(WORKERS) for wait in waits(answers[number::WORKERS], SLOTS)]
    print(f"{'for a slot, a queue for each worker':40} {told(apart)}")


if __name__ == "__main__":
    uvloop.run(main())

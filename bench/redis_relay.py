"""A resumable relay over Redis Streams as people write it today, for the benchmark: nothing of the product uses it.

A task reads the engine and XADDs every chunk; every viewer XREADs and may come back with its `Last-Event-ID`. FastAPI,
httpx and redis-py with their defaults; the Redis beside it appends to a file and syncs it once a second.

    python -m bench.redis_relay PORT ENGINE_URL REDIS_URL
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import redis.asyncio
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

BLOCK = 15_000  # milliseconds


def relay(engine: str, store: Any) -> FastAPI:
    app = FastAPI()
    client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))
    producers: set[asyncio.Task[None]] = set()

    async def produce(key: str, body: bytes) -> None:
        headers = {"content-type": "application/json"}
        async with client.stream("POST", f"{engine}/v1/chat/completions", content=body, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    await store.xadd(key, {"data": line[6:]})

    async def events(key: str, last: str) -> AsyncIterator[str]:
        while True:
            for _, entries in await store.xread({key: last}, block=BLOCK):
                for entry, fields in entries:
                    last = entry
                    yield f"id: {entry}\ndata: {fields['data']}\n\n"
                    if fields["data"] == "[DONE]":
                        return

    @app.get("/health")
    async def health() -> str:
        await store.ping()
        return "ok"

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        key = f"chat:{uuid.uuid4().hex}"
        task = asyncio.create_task(produce(key, await request.body()))
        producers.add(task)
        task.add_done_callback(producers.discard)
        return StreamingResponse(events(key, "0"), media_type="text/event-stream", headers={"x-stream": key})

    @app.get("/streams/{key}")
    async def resume(key: str, request: Request) -> StreamingResponse:
        return StreamingResponse(events(key, request.headers.get("last-event-id", "0")), media_type="text/event-stream")

    return app


if __name__ == "__main__":
    port, engine, store = sys.argv[1:]
    app = relay(engine, redis.asyncio.Redis.from_url(store, decode_responses=True))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)

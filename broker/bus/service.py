"""A NATS micro service whose handlers do not block one another: what OKOME answers questions with."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgspec
import nats.errors
import nats.micro.service
import structlog
from nats.aio.client import Client
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER
from nats.micro.request import Request as MicroRequest

from broker.bus.errors import BusUnavailable, Refusal
from broker.bus.subjects import operation_subject

Handler = Callable[[bytes], Awaitable[bytes]]

log = structlog.get_logger("bus")


class Service:
    """A NATS micro service whose handlers do not block one another."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()
        self._service: nats.micro.service.Service | None = None

    async def start(
        self, client: Client, name: str, version: str, description: str, endpoints: Mapping[str, Handler]
    ) -> None:
        """Whoever needs it to be heard asks the server something afterwards; a server that is gone by then is told of
        it when the connection stands again."""
        self._service = nats.micro.service.Service(client, nats.micro.service.ServiceConfig(name, version, description))
        with contextlib.suppress(TimeoutError):
            # It ends with a round trip, which takes 10 s where the connection breaks. Given up, its pong may come late
            # and end nats-py's read loop: that is what the connection's watchdog looks for.
            async with asyncio.timeout(2):
                await self._service.start()
        for operation, handler in endpoints.items():
            await self._service.add_endpoint(
                name=operation,
                subject=operation_subject(operation),
                handler=self._spawning(handler),
                queue_group="okome",
            )

    async def close(self) -> None:
        """Take no more requests, let those that run finish for 2 s, then cancel them."""
        if self._service is not None:
            with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
                async with asyncio.timeout(2):  # it makes round trips, 10 s each
                    await self._service.stop()
            self._service = None
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=2)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _spawning(self, handler: Handler) -> Callable[[MicroRequest], Coroutine[Any, Any, None]]:
        async def handle(request: MicroRequest) -> None:
            if len(self._tasks) >= self._limit:
                await _respond(request, Refusal("overloaded", "too many requests at once", retry_after=1))
                return
            task = asyncio.create_task(self._answer(handler, request), name=f"op-{request.subject}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return handle

    async def _answer(self, handler: Handler, request: MicroRequest) -> None:
        try:
            await _respond(request, await handler(request.data))
        except Refusal as refusal:
            await _respond(request, refusal)
        except BusUnavailable as error:
            await _respond(request, Refusal("unavailable", str(error), retry_after=1))
        except msgspec.DecodeError as error:
            await _respond(request, Refusal("malformed", str(error)))
        except Exception as error:  # the safety net of this task: one bad request must not end the service
            log.error("bus.operation_failed", subject=request.subject, exc_info=error)
            await _respond(request, Refusal("internal", "the request could not be carried out"))


async def _respond(request: MicroRequest, answer: bytes | Refusal) -> None:
    try:
        if isinstance(answer, Refusal):
            error = {
                "code": answer.code,
                "message": answer.message,
                "param": answer.param,
                "retry_after": answer.retry_after,
            }
            headers = {ERROR_CODE_HEADER: str(answer.status), ERROR_HEADER: answer.code}
            payload = json.dumps({"error": {k: v for k, v in error.items() if v is not None}}).encode()
            await request.respond(payload, headers)
        else:
            await request.respond(answer)
    except (nats.errors.Error, OSError, ValueError) as error:  # who asked hears nothing and asks again
        log.warning("bus.answer_lost", subject=request.subject, error=repr(error))

"""What a worker still waits for, in words: why the server that engine `openai` asks does not list its models yet.

The engine tries by itself, and says only at its own deadline what stood in the way. Whoever waits for this worker wants
to know now, so the same question is asked beside it; an answer is the engine's to judge.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from gpu_worker.engines import EngineSettings, http
from gpu_worker.engines.http import Broken, Endpoint, Refused, Unreachable

INTERVAL = 2.0  # between two questions
PATIENCE = 5.0  # with one of them


@asynccontextmanager
async def explained(name: str, settings: EngineSettings, say: Callable[[str], None]) -> AsyncIterator[None]:
    """While the engine `name` is started in this block, `say` gets what it waits for."""
    say(f"the engine {name} starts")
    telling = asyncio.create_task(_tell(settings, say)) if name == "openai" else None
    try:
        yield
    finally:
        if telling is not None:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


async def _tell(settings: EngineSettings, say: Callable[[str], None]) -> None:
    where = urlsplit(settings.openai_url)
    secure = where.scheme == "https"
    server = Endpoint(where.hostname or "", where.port or (443 if secure else 80), settings.openai_key, tls=secure)
    while True:
        why = await _why_not(server, f"{where.path.rstrip('/')}/models")
        if why:
            say(f"the engine's server at {settings.openai_url} does not answer: {why}")
        await asyncio.sleep(INTERVAL)


async def _why_not(server: Endpoint, path: str) -> str:
    """Why it gives no list of its models; "" when it gives one."""
    try:
        async with asyncio.timeout(PATIENCE):
            await http.call(server, "GET", path)
    except TimeoutError:
        return f"nothing within {PATIENCE:g} s"
    except (Unreachable, Broken, Refused) as error:
        return str(error)
    return ""

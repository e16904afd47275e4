"""Is a part ready? None when it is, else why not; a part that is not there is an answer, never an exception."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any
from urllib.parse import urlsplit

import httpx


class Probe:
    """Asks parts over loopback. `tls` is what an https part's certificate is checked against."""

    def __init__(self, tls: ssl.SSLContext | None = None, *, timeout: float = 2.0) -> None:
        # trust_env off: a proxy in the environment is for the world outside, never for this machine's own roles.
        self._http = httpx.AsyncClient(verify=tls if tls is not None else False, timeout=timeout, trust_env=False)
        self._timeout = timeout

    async def close(self) -> None:
        await self._http.aclose()

    async def unready(self, url: str) -> str | None:
        if url.startswith("redis:"):
            return await self._redis(url)
        try:
            answer = await self._http.get(url)
        except httpx.HTTPError as error:
            return str(error) or type(error).__name__
        return None if answer.status_code == 200 else f"{answer.status_code} {' '.join(answer.text[:400].split())}"

    async def engines(self, url: str) -> list[dict[str, Any]]:
        """The engine processes that a worker tells of; none when it does not answer now: it will be asked again."""
        try:
            answer = await self._http.get(url)
            answer.raise_for_status()
            told = answer.json()
        except (httpx.HTTPError, ValueError):
            return []
        engines = told.get("engines") if isinstance(told, dict) else None
        return [one for one in engines or [] if isinstance(one, dict) and isinstance(one.get("pid"), int)]

    async def _redis(self, url: str) -> str | None:
        where = urlsplit(url)
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_connection(where.hostname, where.port or 6379)
                try:
                    writer.write(b"PING\r\n")
                    answer = await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            return str(error) or type(error).__name__
        return None if answer.startswith(b"+PONG") else answer.decode(errors="replace").strip()

"""The chat page's files, read once, with ETags: `/`, `/c/{sid}` and `/web/<file>`."""

from __future__ import annotations

import hashlib
import mimetypes
from pathlib import Path

from broker.bus.health import Send
from broker.web import STATIC

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)


class Page:
    """All files of the page, in memory."""

    def __init__(self, folder: Path = STATIC) -> None:
        self._files: dict[str, tuple[str, bytes, str]] = {}
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix in {".html", ".js", ".css", ".svg", ".ico", ".png"}:
                kind = "text/javascript" if path.suffix == ".js" else mimetypes.guess_type(path.name)[0] or ""
                charset = "; charset=utf-8" if kind.startswith("text/") else ""
                body = path.read_bytes()
                self._files[path.name] = (kind + charset, body, f'"{hashlib.sha256(body).hexdigest()[:16]}"')

    def has(self, path: str) -> bool:
        return self._name(path) in self._files

    async def serve(self, path: str, if_none_match: str, send: Send, *, head: bool = False) -> None:
        kind, body, etag = self._files[self._name(path)]
        headers = [
            (b"content-type", kind.encode()),
            (b"etag", etag.encode()),
            (b"cache-control", b"no-cache"),  # ask every time: 304 is cheap, and a page of yesterday is not
            (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]
        if path.startswith("/web/"):  # the same for everybody, and no secret: a page of any origin may import them
            headers.append((b"access-control-allow-origin", b"*"))
        if etag in if_none_match:
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if head else body})

    def _name(self, path: str) -> str:
        if path == "/" or path.startswith("/c/"):
            return "index.html"
        return path.removeprefix("/web/") if path.startswith("/web/") else ""

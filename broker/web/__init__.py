"""The browser's side of the stream plane: okome.js, the chat page and their style, as plain files.

Nothing here runs in Python. The stream node serves `index.html` at `/` and `/c/{sid}`,
and every other file at `/web/<file>`.
"""

from pathlib import Path

#: The folder of files to serve. `index.html` refers to the others as `/web/<file>`.
STATIC = Path(__file__).parent

#: What may be served, with its media type. The node serves exactly these names: no path of a request is ever
#: joined to a folder.
FILES: dict[str, str] = {
    "index.html": "text/html; charset=utf-8",
    "chat.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "chat.js": "text/javascript; charset=utf-8",
    "conversation.js": "text/javascript; charset=utf-8",
    "http.js": "text/javascript; charset=utf-8",
    "legs.js": "text/javascript; charset=utf-8",
    "markdown.js": "text/javascript; charset=utf-8",
    "okome.js": "text/javascript; charset=utf-8",
    "protocol.js": "text/javascript; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
    "words.js": "text/javascript; charset=utf-8",
}

#: Everything the page needs and nothing more; no inline script or style, so injected markup cannot run.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

__all__ = ["CONTENT_SECURITY_POLICY", "FILES", "STATIC"]

"""One request of a client, as the ingress sees it: where it goes, and whether it may be sent twice. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from broker.bus.credentials import LOGIN_COOKIE, SESSION_COOKIE
from broker.bus.subjects import is_request_id, partition_of, random_id
from ingress.headers import REQUEST_ID, Field, tokens, value

_SESSION = re.compile(r"/v1/sessions/([A-Za-z0-9_-]{8,64})(?:/([^/]*)(/.*)?)?\Z")
_SOCKET = re.compile(r"/v1/sessions/[^/]*/ws\Z")
_LOGIN_COOKIE, _SESSION_COOKIE = LOGIN_COOKIE.encode(), SESSION_COOKIE.encode()
_BEARER = b"bearer."
OWN_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/version"})
OWN_METHODS = ("GET", "HEAD")
METHODS = (*OWN_METHODS, "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""What is passed on. Which of them a path takes its node knows."""


class Kind(Enum):
    OWN = auto()  # answered by the ingress itself
    EVENTS = auto()  # SSE of a session
    SOCKET = auto()  # WebSocket of a session
    ANSWER = auto()  # POST …/generations that wants to see its answer as events
    ORDINARY = auto()


@dataclass(slots=True)
class Request:
    method: str
    target: str  # path and query, as the client wrote them
    path: str
    query: str  # never logged: it may hold a ticket
    headers: list[Field]
    ip: str = ""
    proto: str = "http"
    loopback: bool = False  # came from this machine, to an address that only this machine reaches
    body: bytes = b""
    keep_alive: bool = True
    chunked_ok: bool = True  # HTTP/1.1: knows chunks
    upgrade: bool = False  # to a WebSocket
    rest: bytes = b""  # what came behind a request to upgrade
    accepted: list[Field] = field(default_factory=list)  # what a node said of it that could not wait for its answer
    kind: Kind = Kind.ORDINARY
    sid: str = ""
    id: str = field(default_factory=lambda: random_id(16))

    def __post_init__(self) -> None:
        brought = value(self.headers, REQUEST_ID).decode("latin-1")
        if is_request_id(brought):
            self.id = brought
        self.kind = self._kind()

    def _kind(self) -> Kind:
        path = unquote(self.path)  # as the node reads it: %61 for an a must not be another kind of request
        if path in OWN_PATHS:
            return Kind.OWN
        # A socket for an illegal id, too: the node accepts and closes, which a browser can read.
        socket = self.upgrade and self.method == "GET" and _SOCKET.match(path)
        kind = Kind.SOCKET if socket else Kind.ORDINARY
        match = _SESSION.match(path)
        if match is None:
            return kind
        self.sid, leaf, deeper = match.group(1), match.group(2), match.group(3)
        if deeper is None:
            if leaf == "events" and self.method == "GET":
                return Kind.EVENTS
            if leaf == "generations" and self.method == "POST" and self.wants_events:
                return Kind.ANSWER
        return kind

    @property
    def wants_events(self) -> bool:
        return any(token.split(b";")[0].lower() == b"text/event-stream" for token in tokens(self.headers, b"accept"))

    @property
    def partition(self) -> str:
        return partition_of(self.sid) if self.sid else ""

    @property
    def until_done(self) -> bool:
        return dict(parse_qsl(self.query)).get("until") == "done"

    @property
    def start(self) -> str:
        """From where the client wants to see its stream: `Last-Event-ID` beats `?after=`."""
        brought = value(self.headers, b"last-event-id").decode("latin-1")
        return brought or dict(parse_qsl(self.query)).get("after", "")

    @property
    def after(self) -> str:
        """The cursor among that; empty when it is none (`0`, `now`)."""
        return self.start if "-" in self.start else ""

    @property
    def repeatable(self) -> bool:
        """Whether another node may be asked when it is not known if the first one carried it out."""
        return self.method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE") or (
            self.method == "POST" and bool(value(self.headers, b"idempotency-key"))
        )

    def waiting_less(self, seconds: float) -> Request:
        """The same, where it waits for an answer, so much later."""
        text = dict(parse_qsl(self.query)).get("wait", "")
        if not text.isdecimal() or len(text) > 4:
            return self
        left = max(1, int(text) - int(seconds))
        return replace(self, target=with_query(self.path, self.query, wait=str(left)))

    def ensure_idempotency_key(self) -> None:
        """A POST that brings no key, or an empty one, gets one, so that it can be repeated on another node."""
        if self.method == "POST" and not value(self.headers, b"idempotency-key"):
            self.headers = [field for field in self.headers if field[0] != b"idempotency-key"]
            self.headers.append((b"idempotency-key", b"i-" + random_id(24).encode()))

    def without_upgrade(self) -> bytes:
        """Its head, without that it wants another protocol."""
        version = b"1.1" if self.chunked_ok else b"1.0"
        options = [token for token in tokens(self.headers, b"connection") if token.lower() != b"upgrade"]
        fields = [field for field in self.headers if field[0] not in (b"upgrade", b"connection")]
        if options:
            fields.append((b"connection", b", ".join(options)))
        lines = [f"{self.method} {self.target} HTTP/".encode() + version]
        return b"\r\n".join([*lines, *(b"%b: %b" % field for field in fields), b"", b""])

    @property
    def credentials(self) -> list[str]:
        """What may say who asks, each as a hash for counting: what a node would believe, as a node reads it, so that
        nobody is counted as another one each time. Of two cookies it may be either.
        """
        brought = value(self.headers, b"authorization")
        kind, _, shown = brought.partition(b" ")
        protocols = tokens(self.headers, b"sec-websocket-protocol") if self.upgrade else []
        offered = [token.removeprefix(_BEARER) for token in protocols if token.startswith(_BEARER)]
        if brought:
            found = [shown.strip() if kind.lower() == b"bearer" else brought]
        elif offered and offered[0]:
            found = [offered[0]]
        else:
            found = [
                self._cookie(name) for name in ((_SESSION_COOKIE, _LOGIN_COOKIE) if self.sid else (_LOGIN_COOKIE,))
            ]
        return [hashlib.sha256(each).hexdigest()[:32] for each in found if each]

    def _cookie(self, name: bytes) -> bytes:
        """The first of that name."""
        for part in value(self.headers, b"cookie").split(b";"):
            found, _, text = part.strip().partition(b"=")
            if found == name:
                return text
        return b""


def allowed(path: str) -> bytes:
    """What `Allow` says of a path, where a method is refused here."""
    return ", ".join(OWN_METHODS if unquote(path) in OWN_PATHS else METHODS).encode()


def path_and_query(target: str) -> tuple[str, str]:
    """RFC 9112 §3.2; raises ValueError. What begins with a slash is a path, however many slashes follow."""
    if target.startswith("/"):
        path, _, query = target.partition("#")[0].partition("?")
        return path, query
    parts = urlsplit(target)
    return parts.path or "/", parts.query


def with_query(path: str, query: str, **changes: str | None) -> str:
    """`path?query` with parameters set, or taken out where None; the others stay in order."""
    pairs = [(name, text) for name, text in parse_qsl(query, keep_blank_values=True) if name not in changes]
    pairs += [(name, text) for name, text in changes.items() if text is not None]
    return f"{path}?{urlencode(pairs)}" if pairs else path

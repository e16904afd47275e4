"""Who may: credentials of a request turned into a principal, or refused. Knows headers and cookies, not routes.

Order: Authorization, what the ingress admitted before (later legs), cookie, ticket. A valid cookie wins over a ticket,
which may be spent already. The session's cookie wins over a login, unless it may only read and the login is of the same
tenant: who has opened a link that was shared with him does not lose what he may do himself. A cookie acts for a person
who may not know it, so with a cookie a POST or a WebSocket must come from a page of ours (Origin).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

from broker.bus.credentials import (
    ADMISSION,
    ADMISSION_HEADER,
    LOGIN_COOKIE,
    RELAY,
    RELAY_HEADER,
    SESSION_COOKIE,
    Claims,
    Verifier,
    digest,
    internal_key,
    seal,
    unseal,
)
from broker.bus.errors import CredentialInvalid, Refusal
from broker.bus.health import Scope
from broker.bus.records import ApiKey
from broker.bus.records import decode as decode_record
from broker.bus.revocations import Revocations
from broker.bus.subjects import is_session_id

RELAY_MAX_AGE = 30.0
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
FORWARDING = frozenset(  # whoever sets one is in between
    {RELAY_HEADER, "forwarded", "via", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"}
)


class Principal(NamedTuple):
    """Who asks. `sid` is "" for an API key or a login: they may open any session of their tenant."""

    tenant: str
    subject: str
    sid: str
    scope: str  # "read" | "write"
    policy: str = "finish"
    jti: str = ""
    issued_at: int = 0
    expires_at: int = 0  # seconds; 0: does not expire
    cookie: bool = False

    def claims(self) -> Claims:
        return Claims(
            self.tenant, self.subject, self.sid, self.scope, self.policy, self.expires_at, self.jti, self.issued_at
        )


class Caller(NamedTuple):
    """What a request brought that has to do with who asks; headers are lower case."""

    headers: dict[str, str]
    query: dict[str, str]
    scheme: str
    subprotocols: tuple[str, ...] = ()
    client: str = ""

    def cookie(self, name: str) -> str:
        """The first of that name: browsers send the one with the longest path first. By hand, because `http.cookies`
        gives up at the first cookie with a strange name, and other programs on this host set cookies too."""
        for part in self.headers.get("cookie", "").split(";"):
            found, _, value = part.strip().partition("=")
            if found == name:
                return value
        return ""


class Relay(NamedTuple):
    """An ingress's word about a request."""

    ingress: str
    proto: str
    loopback: bool


class Access:
    """Keys, revocations and what they say. Fed by watches (`take_key`, `verifier.take`, `revocations.take`)."""

    def __init__(self, origins: Iterable[str], trust_loopback: bool) -> None:
        self.verifier = Verifier()
        self.revocations = Revocations()
        self._keys: dict[str, ApiKey] = {}
        self._internal = b""
        self._origins = frozenset(origins)
        self._trust_loopback = trust_loopback

    def take_key(self, key: str, value: bytes | None) -> None:
        """Entry of bucket `keys`."""
        if key == "internal":
            self._internal = internal_key(value) if value else b""
            return
        self._keys.pop(key, None)
        if value is not None:
            self._keys[key] = decode_record(value, ApiKey)

    # -- who asks --------------------------------------------------------------------------------------------------

    def principal(self, caller: Caller, sid: str = "") -> Principal:
        """Raises Refusal (401, 403) or CredentialInvalid; looks at no ticket: redeeming is a question to OKOME."""
        bearer = self.bearer(caller)
        if bearer:
            return self._checked(self._of_bearer(bearer))
        admitted = self._admitted(caller, sid)
        if admitted is not None:
            return self._checked(admitted)
        invalid: CredentialInvalid | None = None  # one cookie that has expired does not take the other's force
        found: Principal | None = None
        for name, verify in ((SESSION_COOKIE, self.verifier.session), (LOGIN_COOKIE, self.verifier.login)):
            if (name == SESSION_COOKIE and not sid) or not (cookie := caller.cookie(name)):
                continue
            try:
                claims = verify(cookie)
                if not claims.sid or claims.sid == sid:
                    principal = self._checked(_of_claims(claims, cookie=True))
                    if found is None or (found.scope == "read" and found.tenant == principal.tenant):
                        found = principal
            except CredentialInvalid as error:
                invalid = invalid or error
        if found is not None:
            return found
        raise invalid or Refusal("unauthenticated", "an API key, a session token or a login is needed")

    def token(self, text: str) -> Principal:
        """A session token by itself (a WebSocket's first message, a redeemed ticket)."""
        return self._checked(self._of_bearer(text))

    def bearer(self, caller: Caller) -> str:
        """The token or key that was shown as such; "": none. Raises Refusal for another Authorization: whoever sends
        one means it to count, so no cookie may count in its place."""
        if shown := caller.headers.get("authorization", "").strip():
            kind, _, value = shown.partition(" ")
            if kind.lower() != "bearer" or not value:
                raise Refusal("unauthenticated", "Authorization is Bearer, and a token or an API key")
            return value.strip()
        for offered in caller.subprotocols:
            if offered.startswith("bearer."):
                return offered.removeprefix("bearer.")
        return ""

    def may_act(self, caller: Caller, principal: Principal) -> None:
        """A cookie only acts from a page of ours; raises Refusal."""
        if principal.cookie and not self.same_origin(caller):
            raise Refusal("forbidden", "with a cookie, this needs an Origin that is allowed here")

    def same_origin(self, caller: Caller) -> bool:
        origin = caller.headers.get("origin", "")
        if not origin:
            return False
        return _split(origin).netloc.lower() == caller.headers.get("host", "").lower() or self.allowed(origin)

    def allowed(self, origin: str) -> bool:
        """A cross origin that settings allow."""
        return origin.rstrip("/") in self._origins

    def loopback_login(self, caller: Caller) -> bool:
        """A browser on this very machine, at a page that this very machine served to it: nobody else can be that.

        A request that came through something whose word is not believed came from anywhere, whoever the peer is.
        """
        relay = self.relay(caller)
        direct = not FORWARDING.intersection(caller.headers)
        bound = relay.loopback if relay else direct and caller.client in LOOPBACK_HOSTS
        host = _split(f"//{caller.headers.get('host', '')}").hostname or ""
        origin = _split(caller.headers.get("origin", ""))
        return (
            self._trust_loopback
            and bound
            and host in LOOPBACK_HOSTS
            and origin.netloc.lower() == caller.headers.get("host", "").lower()
        )

    def secure(self, caller: Caller) -> bool:
        relay = self.relay(caller)
        return (relay.proto if relay else caller.scheme) in ("https", "wss")

    # -- ingress ---------------------------------------------------------------------------------------------------

    def relay(self, caller: Caller) -> Relay | None:
        """What an ingress says of this request; None where none says anything, or what it says is forged or old."""
        text = caller.headers.get(RELAY_HEADER, "")
        if not text or not self._internal:
            return None
        try:
            said = unseal(self._internal, text, RELAY_MAX_AGE, purpose=RELAY)
            return Relay(str(said["ingress"]), str(said["proto"]), bool(said["loopback"]))
        except (CredentialInvalid, KeyError):
            return None

    def admission(self, principal: Principal, sid: str) -> str:
        """What an ingress may show on later legs of a stream that was admitted: they may begin when the token has
        expired, and end then in words (`Viewers.beat`)."""
        said: dict[str, Any] = principal._asdict() | {"sid": sid, "cookie": False}
        return seal(self._internal, said, purpose=ADMISSION)

    def _admitted(self, caller: Caller, sid: str) -> Principal | None:
        text = caller.headers.get(ADMISSION_HEADER, "")
        if not text or self.relay(caller) is None:
            return None
        try:
            said = unseal(self._internal, text, None, purpose=ADMISSION)
            said.pop("t", None)
            principal = Principal(**said)
        except (CredentialInvalid, TypeError):
            return None
        return principal if principal.sid == sid else None

    # -- inside ----------------------------------------------------------------------------------------------------

    def _of_bearer(self, text: str) -> Principal:
        key = self._keys.get(digest(text))  # first: one that an operator chose may look like a JWT
        if key is not None:
            return Principal(key.tenant, key.id, "", "write", issued_at=key.created_at // 1000)
        if text.count(".") != 2:
            raise Refusal("unauthenticated", "this API key is not known")
        return _of_claims(self.verifier.session(text))

    def _checked(self, principal: Principal) -> Principal:
        if self.revocations.revoked(principal.claims()):
            raise CredentialInvalid("token_revoked", "this credential has been revoked")
        return principal


def read_caller(scope: Scope) -> Caller:
    """Of an ASGI scope."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers[key] = f"{headers[key]}; {text}" if key == "cookie" and key in headers else text
    query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))
    client = scope.get("client")
    return Caller(
        headers, query, scope.get("scheme", "http"), tuple(scope.get("subprotocols", ())), client[0] if client else ""
    )


def _split(url: str) -> SplitResult:
    """Of what a client claims; what is no URL has no parts."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def check_session_id(sid: str) -> None:
    """Raises Refusal `malformed`."""
    if not is_session_id(sid):
        raise Refusal("malformed", "a session id is 8 to 64 of [A-Za-z0-9_-]", param="session_id")


def check_opens(principal: Principal, sid: str) -> None:
    """Whether this principal may open that session, as far as its token tells; raises Refusal."""
    if principal.sid and principal.sid != sid:
        raise Refusal("forbidden", "this token is for another session")


def _of_claims(claims: Claims, *, cookie: bool = False) -> Principal:
    return Principal(
        claims.tenant,
        claims.subject,
        claims.sid,
        claims.scope,
        claims.policy,
        claims.jti,
        claims.issued_at,
        claims.expires_at,
        cookie,
    )

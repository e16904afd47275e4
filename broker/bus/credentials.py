"""Credentials: what is signed, by whom, and whether it is to be believed.

Answers for the tokens that clients hold (JWT, EdDSA), and what ingress and node say to each other (HMAC); what was
revoked is in `revocations.py`. It must not know HTTP or the bus: public keys are handed in as their bucket changes
(`Verifier.take` fits `kv.Watch`'s on_change), private keys are OKOME's affair.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from broker.bus import clock
from broker.bus.errors import CredentialInvalid
from broker.bus.subjects import random_id

ISSUER = "okome"
SESSION_AUDIENCE = "okome:session"
LOGIN_AUDIENCE = "okome:login"
ALGORITHM = "EdDSA"
TYPE = "at+jwt"
LEEWAY = 30  # seconds beyond its time that a token or a seal is believed
REVOKED_FOR = 48 * 3600  # seconds a revocation is kept: longer than any token lives, whoever's clock counts
MAX_TOKEN = 4096  # bytes: a longer one is refused before any of it is parsed
MOST_BELIEVED = 8192  # tokens whose signatures need not be looked at again: 0.7 KiB each
API_KEY_PREFIX = "ok_"

# Where they travel, which node and ingress must call by the same name. Who reads and writes HTTP is their affair.
SESSION_COOKIE = "okome_s"
LOGIN_COOKIE = "okome_login"
RELAY_HEADER = "x-okome-relay"  # an ingress's word about a request
ADMISSION_HEADER = "x-okome-admission"  # what a node found when it admitted a stream
CLOCK_HEADER = "x-okome-clock"  # the time (ms) of a node that answers a health check: an ingress's word is dated by it
RELAY, ADMISSION = "relay", "admission"  # what each is sealed for


class Claims(msgspec.Struct, frozen=True):
    """What a believed token says. `sid` is "" in a login token. Times are in seconds since the epoch, by the clock of
    whoever signed it; nothing is decided by `issued_at`."""

    tenant: str
    subject: str  # the API key's id, or "login"
    sid: str
    scope: str  # "read" | "write"
    policy: str  # on_disconnect: "finish" | "cancel"
    expires_at: int
    jti: str
    issued_at: int


def new_api_key() -> str:
    """`ok_` and 40 base-36 digits: 206 bits."""
    return API_KEY_PREFIX + random_id(40)


def new_ticket() -> str:
    return random_id(32)


def digest(secret: str) -> str:
    """How API keys and tickets are kept: sha256, hex. They are random, so there is nothing to salt or stretch."""
    return hashlib.sha256(secret.encode()).hexdigest()


def key_id(api_key: str) -> str:
    """What an API key is called where it must not be seen."""
    return "k" + digest(api_key)[:12]


# -- tokens -------------------------------------------------------------------------------------------------------


class SigningKey:
    """A private key with its key id. `private` and `public` are its JWKs, to be kept and to be published."""

    def __init__(self, kid: str, private: dict[str, Any]) -> None:
        self.kid = kid
        self.private = private
        self.public = {name: value for name, value in private.items() if name != "d"}
        key = OKPAlgorithm.from_jwk(private)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"signing key {kid} is not an Ed25519 private key")
        self._key = key

    @classmethod
    def generate(cls) -> SigningKey:
        kid = random_id(10)
        jwk = OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate(), as_dict=True)
        return cls(kid, {**jwk, "kid": kid, "alg": ALGORITHM, "use": "sig"})

    def session(self, tenant: str, subject: str, sid: str, scope: str, policy: str, life: float) -> tuple[str, int]:
        """A session token that lives for `life` seconds, and when it expires (seconds since the epoch)."""
        return self._sign(SESSION_AUDIENCE, life, sub=subject, tr=tenant, sid=sid, scope=scope, pol=policy)

    def login(self, tenant: str, subject: str, life: float) -> tuple[str, int]:
        return self._sign(LOGIN_AUDIENCE, life, sub=subject, tr=tenant, scope="write")

    def _sign(self, audience: str, life: float, **claims: str) -> tuple[str, int]:
        now = int(clock.now())
        expires_at = now + int(life)
        payload = {"iss": ISSUER, "aud": audience, **claims, "iat": now, "exp": expires_at, "jti": random_id(20)}
        token = jwt.encode(payload, self._key, algorithm=ALGORITHM, headers={"kid": self.kid, "typ": TYPE})
        return token, expires_at


class Verifier:
    """The public keys of bucket `jwks`, and what they say of a token. Revocation is asked of `Revocations`.

    A client shows one token again and again. What it says is kept under its digest while the keys stay as they are:
    looking at a signature is a fifth of what it costs a node when a viewer comes back.
    """

    def __init__(self) -> None:
        self._keys: dict[str, jwt.PyJWK] = {}
        self._believed: dict[bytes, Claims] = {}  # the oldest first

    def take(self, kid: str, jwk: bytes | None) -> None:
        """Entry `kid` of the bucket changed or went away. What is not an Ed25519 key is not used."""
        self._keys.pop(kid, None)
        self._believed.clear()
        if jwk is None:
            return
        try:
            parsed = json.loads(jwk)
            if parsed.get("kty") == "OKP" and parsed.get("crv") == "Ed25519" and "d" not in parsed:
                self._keys[kid] = jwt.PyJWK(parsed, algorithm=ALGORITHM)
        except (ValueError, AttributeError, jwt.PyJWTError):
            return  # whoever can write this bucket signs tokens; a broken entry only means that its tokens are refused

    def session(self, token: str) -> Claims:
        """Raises CredentialInvalid `unauthenticated` or `token_expired`."""
        claims = self._verify(token, SESSION_AUDIENCE)
        if not claims.sid or claims.scope not in ("read", "write"):
            raise CredentialInvalid("unauthenticated", "this token names no session")
        return claims

    def login(self, token: str) -> Claims:
        """Raises CredentialInvalid `unauthenticated` or `token_expired`."""
        return self._verify(token, LOGIN_AUDIENCE)

    def _verify(self, token: str, audience: str) -> Claims:
        if len(token) > MAX_TOKEN:
            raise CredentialInvalid("unauthenticated", "not a token")
        known = hashlib.sha256(f"{audience} {token}".encode(errors="surrogatepass")).digest()
        claims = self._believed.get(known)
        if claims is None:
            claims = self._read(token, audience)
            if len(self._believed) >= MOST_BELIEVED:
                del self._believed[next(iter(self._believed))]
            self._believed[known] = claims
        if clock.now() >= claims.expires_at + LEEWAY:
            raise CredentialInvalid("token_expired", "the token has expired")
        return claims

    def _read(self, token: str, audience: str) -> Claims:
        """What it says, if it was signed here; whenever it expires."""
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.get(str(header.get("kid")))
            if key is None or header.get("typ") != TYPE:
                raise CredentialInvalid("unauthenticated", "this token was not made here")
            payload = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=audience,
                issuer=ISSUER,
                # Times are judged here: by this process's clock, and not `iat`, which a clock behind OKOME's takes for
                # the future. It says nothing about whether a token counts; `exp` does.
                options={
                    "require": ["exp", "iat", "aud", "iss", "sub", "jti"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
            return Claims(
                tenant=_text(payload, "tr"),
                subject=_text(payload, "sub"),
                sid=_text(payload, "sid", ""),
                scope=_text(payload, "scope", ""),
                policy=_text(payload, "pol", "finish"),
                expires_at=int(payload["exp"]),
                jti=_text(payload, "jti"),
                issued_at=int(payload["iat"]),
            )
        except (jwt.PyJWTError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise CredentialInvalid("unauthenticated", "the token is not valid here") from error


def _text(payload: dict[str, Any], name: str, default: str | None = None) -> str:
    value = payload.get(name, default)
    if not isinstance(value, str):
        raise TypeError(f"claim {name} is not text")
    return value


# -- what ingress and node say to each other ------------------------------------------------------------------------


def new_internal_key() -> str:
    """For bucket `keys`, key `internal`: `{"key": <this>}`."""
    return _b64(secrets.token_bytes(32))


def internal_key(entry: bytes) -> bytes:
    """The key in that entry; raises CredentialInvalid where it is not one."""
    try:
        return _unb64(json.loads(entry)["key"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CredentialInvalid("unauthenticated", "keys/internal is not a key") from error


def seal(key: bytes, payload: dict[str, Any], *, purpose: str = "") -> str:
    """`<payload>.<HMAC-SHA256>`, both base64url. `t` (ms) is added where missing. `purpose` is part of what is signed,
    so that what was sealed for one purpose cannot be shown for another."""
    body = _b64(json.dumps({"t": clock.now_ms(), **payload}, separators=(",", ":")).encode())
    return f"{body}.{_b64(_mac(key, purpose, body))}"


def unseal(key: bytes, text: str, max_age: float | None, *, purpose: str = "") -> dict[str, Any]:
    """The payload. Raises CredentialInvalid: forged, for another purpose, or older than `max_age` seconds.

    With a `max_age`, whoever sealed it must have dated it by the clock of this process.
    """
    body, _, mac = text.partition(".")
    try:
        genuine = hmac.compare_digest(_unb64(mac), _mac(key, purpose, body))
    except ValueError:
        genuine = False
    if not genuine:
        raise CredentialInvalid("unauthenticated", "not sealed here")
    payload: dict[str, Any] = json.loads(_unb64(body))
    age = (clock.now_ms() - payload["t"]) / 1000
    if max_age is not None and not -LEEWAY <= age <= max_age:
        raise CredentialInvalid("token_expired", f"sealed {age:.0f} s ago")
    return payload


def _mac(key: bytes, purpose: str, body: str) -> bytes:
    return hmac.digest(key, f"{purpose}.{body}".encode(), "sha256")


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    """Raises ValueError. One spelling per value: what is not canonical is refused."""
    try:
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not base64url") from error
    if _b64(data) != text:
        raise ValueError("not canonical base64url")
    return data

"""Credentials: only what OKOME signed, for this audience, in time and not revoked, is believed."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import OKPAlgorithm

from broker.bus.clock import now_ms
from broker.bus.credentials import (
    LEEWAY,
    Claims,
    SigningKey,
    Verifier,
    digest,
    internal_key,
    new_api_key,
    new_internal_key,
    seal,
    unseal,
)
from broker.bus.errors import CredentialInvalid
from tests.fixtures.clock import clock_off

KEY = SigningKey.generate()


def verifier(*keys: SigningKey) -> Verifier:
    made = Verifier()
    for key in keys or (KEY,):
        made.take(key.kid, json.dumps(key.public).encode())
    return made


def session_token(life: float = 60, key: SigningKey = KEY) -> str:
    return key.session("acme", "k1", "00abcdefgh", "write", "cancel", life)[0]


def forged(header: dict[str, Any] | None = None, secret: Any = None, algorithm: str = "EdDSA", **claims: Any) -> str:
    """A token whose signature is right unless `secret` says otherwise, with some claims or header fields changed."""
    now = int(time.time())
    payload = {
        "iss": "okome", "aud": "okome:session", "sub": "k1", "tr": "acme", "sid": "00abcdefgh", "scope": "read",
        "pol": "finish", "iat": now, "exp": now + 60, "jti": "j",
    }  # fmt: skip
    payload = {name: value for name, value in {**payload, **claims}.items() if value is not None}
    key: Any = secret if secret is not None else OKPAlgorithm.from_jwk(KEY.private)
    return jwt.encode(payload, key, algorithm=algorithm, headers={"kid": KEY.kid, "typ": "at+jwt", **(header or {})})


def refused(code: str, token: str, check: Verifier | None = None) -> None:
    with pytest.raises(CredentialInvalid) as caught:
        (check or verifier()).session(token)
    assert caught.value.code == code


def test_a_session_token_says_what_was_signed() -> None:
    token, expires_at = KEY.session("acme", "k1", "00abcdefgh", "read", "cancel", 60)
    claims = verifier().session(token)
    assert claims == Claims("acme", "k1", "00abcdefgh", "read", "cancel", expires_at, claims.jti, expires_at - 60)
    assert len(claims.jti) == 20
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "kid": KEY.kid, "typ": "at+jwt"}


def test_a_login_token_is_not_a_session_token_nor_the_other_way_round() -> None:
    login, _ = KEY.login("acme", "login", 60)
    assert verifier().login(login).tenant == "acme"
    refused("unauthenticated", login)
    with pytest.raises(CredentialInvalid, match="not valid here"):
        verifier().login(session_token())


def test_an_expired_token_is_told_apart_and_has_thirty_seconds_of_leeway() -> None:
    now = int(time.time())
    assert verifier().session(forged(exp=now - LEEWAY + 5)).sid == "00abcdefgh"
    refused("token_expired", forged(exp=now - LEEWAY - 1))


def test_when_a_token_was_issued_does_not_make_it_invalid() -> None:
    """A node whose clock is behind OKOME's sees every new token as issued in its future."""
    with clock_off(540):
        token = session_token(life=3600)
    assert verifier().session(token).sid == "00abcdefgh"
    with clock_off(-540):
        assert verifier().session(token).sid == "00abcdefgh"


def test_a_token_runs_out_early_or_late_by_what_the_clocks_differ_and_no_more() -> None:
    token = session_token(life=3600)
    with clock_off(3600 - 540):
        assert verifier().session(token).sid == "00abcdefgh"
    with clock_off(3600 + LEEWAY + 60):
        refused("token_expired", token)


def test_the_keys_of_several_ids_are_all_believed_until_they_go_away() -> None:
    other = SigningKey.generate()
    check = verifier(KEY, other)
    assert check.session(session_token()).sid == check.session(session_token(key=other)).sid
    check.take(KEY.kid, None)
    refused("unauthenticated", session_token(), check)
    assert check.session(session_token(key=other)).tenant == "acme"


def test_what_was_believed_once_is_judged_again_without_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    check, token = verifier(), session_token(life=3600)
    claims = check.session(token)
    with monkeypatch.context() as blind:
        blind.setattr(jwt, "decode", lambda *_, **__: pytest.fail("the signature was looked at again"))
        assert check.session(token) is claims
    with pytest.raises(CredentialInvalid, match="not valid here"):
        check.login(token)
    with clock_off(3600 + LEEWAY + 60):
        refused("token_expired", token, check)
    refused("unauthenticated", token[:-4] + "AAAA", check)
    check.take(KEY.kid, None)
    refused("unauthenticated", token, check)


def test_no_more_tokens_are_kept_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.bus.credentials.MOST_BELIEVED", 2)
    check = verifier()
    tokens = [session_token() for _ in range(4)]
    for token in tokens * 2:
        assert check.session(token).sid == "00abcdefgh"
    assert len(check._believed) == 2


def test_a_token_under_anothers_key_id_is_refused() -> None:
    other = SigningKey("stolen", {**SigningKey.generate().private})
    refused("unauthenticated", forged(secret=OKPAlgorithm.from_jwk(other.private)))
    refused("unauthenticated", session_token(key=other))


def test_only_eddsa_is_allowed() -> None:
    """`none`, and HMAC under the public key that everybody can read, are the two classic forgeries."""
    refused("unauthenticated", forged(secret="", algorithm="none"))
    refused("unauthenticated", forged(secret=KEY.public["x"].ljust(64, "x"), algorithm="HS256"))


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "somebody"},
        {"aud": "okome:login"},
        {"aud": None},
        {"exp": None},
        {"iat": None},
        {"jti": None},
        {"sub": None},
        {"tr": None},
        {"sid": None},
        {"sid": 7},
        {"scope": "admin"},
        {"tr": ["acme"]},
        {"header": {"typ": "JWT"}},
        {"header": {"kid": "nobody"}},
    ],
    ids=str,
)
def test_a_token_with_a_wrong_or_missing_claim_is_refused(change: dict[str, Any]) -> None:
    refused("unauthenticated", forged(**change))


def test_a_changed_or_cut_token_is_refused() -> None:
    head, body, signature = session_token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    other = base64.urlsafe_b64encode(json.dumps({**claims, "sid": "00otherone"}).encode()).rstrip(b"=").decode()
    for token in (
        f"{head}.{other}.{signature}",
        f"{head}.{body}",
        f"{head}.{body}.",
        "",
        "x",
        "a.b.c",
        "é.é.é",
        "x" * 9000,
    ):
        refused("unauthenticated", token)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_refused_in_one_way(text: str) -> None:
    refused("unauthenticated", text)


@pytest.mark.parametrize(
    "entry",
    [b"", b"[]", b"{}", b"\xff", b'{"kty":"oct","k":"c2VjcmV0"}', b'{"kty":"OKP","crv":"X25519","x":"AA"}'],
)
def test_an_entry_that_is_no_public_ed25519_key_is_not_used(entry: bytes) -> None:
    check = verifier()
    check.take(KEY.kid, entry)
    refused("unauthenticated", session_token(), check)


def test_the_published_key_holds_no_secret() -> None:
    assert "d" in KEY.private
    assert "d" not in KEY.public
    assert (KEY.public["kty"], KEY.public["crv"]) == ("OKP", "Ed25519")
    check = Verifier()
    check.take(KEY.kid, json.dumps(KEY.private).encode())  # published by mistake: better refused than relied on
    refused("unauthenticated", session_token(), check)
    assert isinstance(OKPAlgorithm.from_jwk(KEY.private), Ed25519PrivateKey)


def test_what_was_sealed_is_unsealed_by_the_same_key_for_the_same_purpose_only() -> None:
    key = internal_key(json.dumps({"key": new_internal_key()}).encode())
    text = seal(key, {"ip": "::1"}, purpose="relay")
    payload = unseal(key, text, 30, purpose="relay")
    assert payload["ip"] == "::1"
    changed = text[:-1] + ("A" if text[-1] != "A" else "B")
    for shown, under, purpose in (
        (text, key, "admission"),
        (text, key, ""),
        (text, b"0" * 32, "relay"),
        (changed, key, "relay"),
        ("x" + text, key, "relay"),
        ("", key, "relay"),
        ("é.é", key, "relay"),
    ):
        with pytest.raises(CredentialInvalid):
            unseal(under, shown, 30, purpose=purpose)


def test_what_was_sealed_too_long_ago_is_void() -> None:
    key = b"k" * 32
    old = seal(key, {"t": now_ms() - 31_000})
    with pytest.raises(CredentialInvalid, match="sealed 31 s ago"):
        unseal(key, old, 30)
    assert unseal(key, old, None)["t"] < now_ms()
    with pytest.raises(CredentialInvalid):
        unseal(key, seal(key, {"t": now_ms() + 60_000}), 30)


@pytest.mark.parametrize("entry", [b"", b"{}", b"[1]", b'{"key": 7}', b'{"key": "\xc3\xa9"}'])
def test_an_internal_key_that_is_none_is_said_so(entry: bytes) -> None:
    with pytest.raises(CredentialInvalid):
        internal_key(entry)


def test_api_keys_are_random_and_kept_as_hashes() -> None:
    key = new_api_key()
    assert key.startswith("ok_")
    assert len(key) == 43
    assert key != new_api_key()
    assert digest(key) == digest(key)
    assert len(digest(key)) == 64

"""Revocations: what bears a revoked name is void until no token can bear it, and nothing else is."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus.clock import now_ms
from broker.bus.credentials import REVOKED_FOR, Claims
from broker.bus.records import Revocation, encode
from broker.bus.revocations import SPAN, Revocations
from tests.fixtures.clock import clock_off

HOUR = 3600 * 1000


def claims(**changes: Any) -> Claims:
    base = {"tenant": "acme", "subject": "k1", "sid": "s", "scope": "read", "policy": "finish", "jti": "j"}
    return Claims(**{**base, "expires_at": int(time.time()) + 60, "issued_at": int(time.time()), **changes})


@pytest.mark.parametrize("key", ["jti.j", "sid.s", "key.k1"])
def test_a_revoked_token_session_or_key_voids_what_bears_its_name_whatever_any_clock_says(key: str) -> None:
    """The replica that signed a token may be ahead of the one that revokes it: the token looks younger, and is void."""
    revocations = Revocations()
    with clock_off(-240):
        revocations.take(key, encode(Revocation(now_ms(), "deleted")))
    for issued in (-3600, 0, 300, 3600):
        assert revocations.revoked(claims(issued_at=int(time.time()) + issued))
    with clock_off(540):
        assert revocations.revoked(claims())
    assert not revocations.revoked(claims(jti="other", sid="other", subject="other"))
    revocations.take(key, None)
    assert not revocations.revoked(claims())


def test_a_revocation_that_cannot_be_read_still_revokes() -> None:
    revocations = Revocations()
    revocations.take("sid.s", b"\xff")
    assert revocations.revoked(claims())


def test_revocations_older_than_any_token_are_forgotten() -> None:
    revocations = Revocations()
    for index in range(50):
        revocations.take(f"sid.{index}", encode(Revocation(now_ms() - (REVOKED_FOR + SPAN) * 1000, "old")))
    revocations.take("sid.s", encode(Revocation(now_ms(), "new")))
    assert len(revocations) == 1


def test_a_name_that_the_bucket_has_forgotten_counts_again() -> None:
    revocations = Revocations()
    revocations.take("key.k1", encode(Revocation(now_ms(), "revoked")))
    assert revocations.revoked(claims())
    with clock_off(REVOKED_FOR + SPAN + 60):
        assert not revocations.revoked(claims())


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 47), st.booleans())))
def test_what_is_kept_is_what_was_revoked_and_not_taken_back(changes: list[tuple[int, int, bool]]) -> None:
    """In any order, again at another time, and whichever hour it was."""
    revocations, names = Revocations(), set[str]()
    for number, hours, comes in changes:
        name = f"session{number}"
        revocations.take(f"sid.{name}", encode(Revocation(now_ms() - hours * HOUR, "deleted")) if comes else None)
        (names.add if comes else names.discard)(name)
    assert len(revocations) == len(names)
    for number in range(10):
        assert revocations.revoked(claims(sid=f"session{number}")) is (f"session{number}" in names)


def test_a_name_costs_what_its_hash_does() -> None:
    revocations = Revocations()
    for number in range(5000):
        revocations.take(f"sid.{number}", encode(Revocation(now_ms(), "deleted")))
    assert len(revocations) == 5000
    assert sum(span.buffer_info()[1] * span.itemsize for span in revocations._spans.values()) == 5000 * 8

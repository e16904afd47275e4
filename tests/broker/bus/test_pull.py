"""Pulls: both versions of the acknowledgement subject are understood, and every status means one thing."""

from __future__ import annotations

import json

import pytest

from broker.bus import pull

FIELDS = "TOK_07.node1-x.3.41.17.1700000000000000000.5"


@pytest.mark.parametrize(
    "reply",
    [
        f"$JS.ACK.{FIELDS}",
        f"$JS.ACK._.Xy12.{FIELDS}",
        f"$JS.ACK.hub.Xy12.{FIELDS}.r4nd0m",
        f"$JS.ACK._.X.{FIELDS}.r.more",
    ],
)
def test_both_versions_say_the_same(reply: str) -> None:
    """Version 2 has domain and account in front and may grow at its end; nats-py's ordered consumer breaks on it."""
    assert pull.parse_reply(reply) == pull.Delivered(consumer="node1-x", attempts=3, seq=41, consumer_seq=17, pending=5)


@pytest.mark.parametrize(
    "reply", ["", "_INBOX.abc", "$JS.ACK.S.C.1.2.3.4", "$JS.ACK.d.S.C.1.2.3.4.5", "$JS.FC.a.b.c.d.e.f.g"]
)
def test_anything_else_is_no_delivery(reply: str) -> None:
    assert pull.parse_reply(reply) is None


@pytest.mark.parametrize(
    ("status", "description", "end"),
    [
        ("100", "Idle Heartbeat", pull.End.HEARTBEAT),
        ("404", "No Messages", pull.End.PULL_OVER),
        ("408", "Request Timeout", pull.End.PULL_OVER),
        ("409", "Batch Completed", pull.End.PULL_OVER),
        ("409", "Message Size Exceeds MaxBytes", pull.End.PULL_OVER),
        ("409", "Leadership Change", pull.End.PULL_OVER),
        ("409", "Exceeded MaxWaiting", pull.End.PULL_OVER),
        ("409", "Consumer Deleted", pull.End.CONSUMER_GONE),
        ("409", "Server Shutdown", pull.End.CONSUMER_GONE),
        ("503", "", pull.End.CONSUMER_GONE),
    ],
)
def test_every_status_means_one_thing(status: str, description: str, end: pull.End) -> None:
    assert pull.read_status({"Status": status, "Description": description}) is end


def test_a_pull_ends_by_itself_and_is_heard_meanwhile() -> None:
    asked = json.loads(pull.request(7))
    assert asked == {
        "batch": 7,
        "max_bytes": 10 * 1024 * 1024,
        "expires": 30_000_000_000,
        "idle_heartbeat": 500_000_000,
    }

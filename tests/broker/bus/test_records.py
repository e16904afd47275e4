"""Records come back as they were written, ignore what they do not know, and refuse what they are not."""

from __future__ import annotations

import json

import msgspec
import pytest

from broker.bus import operations, records

REQUEST = records.Request(model="m", messages=[records.Message("user", 'früh\n"')], stop=["\n"], temperature=0.5)
EXAMPLES: list[msgspec.Struct] = [
    records.ApiKey("k1", "default", "ci", 1),
    records.Session("00abcdefgh", "default", 1, 2, "m", "a title", {"x": [1, None]}, "cancel", "chat-1"),
    records.Generation("g1", "00abcdefgh", "default", REQUEST, 1, 41, records.Status.DONE, text="früh"),
    records.Model("m", "scripted", 4096, 1),
    records.Node("n1", "http://127.0.0.1:1", "ready", 3, 1),
    records.Revocation(1, "logout"),
    records.Ticket("session", "default", "00abcdefgh", "read", 1),
    records.Idempotency("f", {"generation_id": "g1"}),
    records.Job("g1", "00abcdefgh", "default", REQUEST, 41, 1, "cancel"),
    records.Beat("w1", "i1", 1, {"m": records.Load(1, 1, 0, 4)}, {"g1": "$JS.ACK.x"}, ["h"]),
    operations.CreateGeneration("default", "00abcdefgh", REQUEST, "key"),
]


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_a_record_comes_back(record: msgspec.Struct) -> None:
    assert records.decode(records.encode(record), type(record)) == record


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_a_field_of_a_later_version_is_ignored(record: msgspec.Struct) -> None:
    later = json.loads(records.encode(record)) | {"a_later_field": {"x": 1}}
    assert records.decode(json.dumps(later).encode(), type(record)) == record


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"null", b'{"id": 1}', b"\xff", b'{"id": "k"'])
def test_what_is_no_record_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        records.decode(payload, records.ApiKey)


def test_open_statuses_are_those_without_a_terminal_frame() -> None:
    assert {status for status in records.Status if status.open} == {"queued", "running"}

"""What is told of an engine's words: no credential to anybody, no address to viewers, and what is left can be read."""

import time

import pytest

from gpu_worker.engines import discretion
from gpu_worker.engines.discretion import MOST, for_the_log, for_viewers

CREDENTIALS = [
    "sk-abcDEF123",
    "sk-proj-abc_123",
    "sk-ab***********yz",
    "hf_abcdefgh",
    "gsk_1234abcd",
    "eyJhbGciOi.eyJzdWIi.c2ln",
    "jwt-eyJhbGciOi.eyJzdWIi.c2ln",
    "Bearer abc",
    "0123456789abcdef0123456789abcdef",
]
ADDRESSES = [
    "http://vllm.internal:8000/v1/models",
    "https://10.0.0.7/v1",
    "10.0.0.7",
    "10.0.0.7:8000",
    "[fe80::1]:8000",
    "10.0.0.7-gpu.lan:8000",
    "fe80::1:2",
    "gpu-node-7:8000",
    "7-gpu:8000",
    "www.example.com-gpu.lan",
    "-gpu.example.com",
    "localhost:80",
    "vllm.default.svc.cluster.local",
    "admin@example.com",
    "/home/models/secret.gguf",
]


@pytest.mark.parametrize("secret", CREDENTIALS)
def test_no_credential_is_told_to_anybody(secret: str) -> None:
    for told in (for_the_log, for_viewers):
        assert told(f"refused ({secret}): sorry") in ("refused (…): sorry", "refused (… sorry")


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_for_the_log_alone(address: str) -> None:
    assert for_the_log(f"at {address} it broke") == f"at {address} it broke"
    assert for_viewers(f"at {address} it broke") == "at … it broke"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("Incorrect API key provided: abc. See the docs.", "Incorrect API key provided: … See the docs."),
        ("api_key=abc is wrong", "api_key=… is wrong"),
        ("https://me:secret@host/v1 is away", "https://…host/v1 is away"),
    ],
)
def test_what_stands_where_a_key_does_is_taken_for_one(words: str, told: str) -> None:
    assert for_the_log(words) == told


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens (2900 in messages).",
        "the request exceeds the available context size (512 tokens), try increasing it",
        "Invalid value for 'temperature': 3.5 is greater than the maximum of 2 - 'messages.0.content'",
        "not a script: Object contains unknown field `x` - at `$.y[...]`",
        "400: top_p must be in (0, 1], got 1.5/2",
    ],
)
def test_words_about_a_request_stay_as_they_are(words: str) -> None:
    assert for_viewers(words) == words


ENDLESS = ["a-", "0-", "-_", "a.b-", "a.", "a1-", "eyJ-", "eyJ.", "a+", "[:", ":", "é", "/", "-", "1.2.3.", "bearer "]


@pytest.mark.parametrize("word", [*ENDLESS, "[" + ":" * 16_000])
def test_it_takes_no_longer_the_more_places_a_secret_could_begin_at(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """Seconds of CPU for eight times as much as is ever looked at: hundredths, where looking at each place again takes
    from half a second to eight."""
    words = (word * (16_000 // len(word) + 1))[:16_000]
    monkeypatch.setattr(discretion, "MOST", len(words))

    def cost() -> float:
        began = time.process_time()
        for_viewers(words)
        return time.process_time() - began

    assert any(cost() < 0.25 for _ in range(3))


def test_it_takes_no_longer_for_endless_words() -> None:
    for word in ("a.", "a:", "a@", "-", "/a", "[", "1."):
        assert len(for_viewers(word * 1_000_000)) <= MOST

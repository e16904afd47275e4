"""What is told of an engine's words: no credential to anybody, no address to viewers, and what is left can be read."""

import pytest

from gpu_worker.engines.discretion import MOST, for_the_log, for_viewers

CREDENTIALS = [
    "sk-abcDEF123",
    "sk-proj-abc_123",
    "sk-ab***********yz",
    "hf_abcdefgh",
    "gsk_1234abcd",
    "eyJhbGciOi.eyJzdWIi.c2ln",
    "Bearer abc",
    "0123456789abcdef0123456789abcdef",
]
ADDRESSES = [
    "http://vllm.internal:8000/v1/models",
    "https://10.0.0.7/v1",
    "10.0.0.7",
    "10.0.0.7:8000",
    "[fe80::1]:8000",
    "fe80::1:2",
    "gpu-node-7:8000",
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


def test_it_takes_no_longer_for_endless_words() -> None:
    for word in ("a.", "a:", "a@", "-", "/a", "[", "1."):
        assert len(for_viewers(word * 1_000_000)) <= MOST

"""What a server's refusal means, and what viewers hear of it."""

import pytest

from gpu_worker.engines.chunk import Error
from gpu_worker.engines.engine import EngineFailed
from gpu_worker.engines.refusal import broke, refused
from gpu_worker.engines.refused import Refused

WORDS = "Incorrect API key provided: sk-abc."


@pytest.mark.parametrize(
    ("status", "code", "retryable", "shown"),
    [
        (400, "engine_failed", False, f"400: {WORDS}"),
        (422, "engine_failed", False, f"422: {WORDS}"),
        (401, "engine_failed", False, "the engine does not accept this worker"),
        (403, "engine_failed", False, "the engine does not accept this worker"),
        (404, "engine_failed", False, "the engine does not have what it was asked for"),
        (418, "engine_failed", False, "the engine refused"),
        (302, "engine_failed", False, "the engine is not where it was looked for"),
        (204, "engine_failed", False, "the engine gave no answer"),
        (408, "engine_failed", True, "the engine refused"),
        (500, "engine_failed", True, "the engine failed"),
        (429, "overloaded", True, "the engine is overloaded"),
        (503, "overloaded", True, "the engine is overloaded"),
    ],
)
def test_viewers_hear_the_words_about_their_request_and_the_kind_of_the_rest(
    status: int, code: str, retryable: bool, shown: str
) -> None:
    """The log has the words of both."""
    error = refused(Refused(status, "", WORDS))
    assert (error.code, error.message, error.retryable) == (code, f"{status}: {WORDS}", retryable)
    assert error.shown == shown


@pytest.mark.parametrize(
    ("said", "retryable", "shown"),
    [
        (Error(WORDS), True, "the engine failed"),
        (Error(WORDS, code="server_error"), True, "the engine failed"),
        (Error(WORDS, code=500), True, "the engine failed"),
        (Error(WORDS, code="429"), True, "the engine is overloaded"),
        (Error(WORDS, code=400), False, f"400: {WORDS}"),
        (Error(WORDS, code=401), False, "the engine does not accept this worker"),
        (Error(WORDS, code="invalid_api_key"), False, "the engine does not accept this worker"),
        (Error(WORDS, type="authentication_error", code=400), False, "the engine does not accept this worker"),
    ],
)
def test_an_error_within_an_answer_means_what_it_would_mean_instead_of_one(
    said: Error, retryable: bool, shown: str
) -> None:
    error = broke(said)
    assert (error.code, error.retryable, error.shown) == ("engine_failed", retryable, shown)


@pytest.mark.parametrize(
    "error",
    [
        refused(Refused(429, "insufficient_quota", WORDS, "insufficient_quota", 20.0)),
        refused(Refused(429, "", WORDS, "billing_not_active")),
        broke(Error(WORDS, "insufficient_quota", 429)),
    ],
)
def test_a_server_that_wants_to_be_paid_is_not_overloaded(error: EngineFailed) -> None:
    assert (error.code, error.message, error.retryable) == ("engine_failed", f"402: {WORDS}", False)
    assert error.shown == "the engine does not accept this worker"


def test_a_server_that_is_overloaded_says_when_to_come_back() -> None:
    error = refused(Refused(429, "", WORDS, retry_after=20.0))
    assert (error.code, error.retry_after) == ("overloaded", 20.0)


@pytest.mark.parametrize(
    "error",
    [
        refused(Refused(400, "", "too long", "context_length_exceeded")),
        refused(Refused(400, "exceed_context_size_error", "too long")),
        broke(Error("too long", "exceed_context_size_error", 400)),
        broke(Error("This model's maximum context length is 9 tokens.", code=400)),
    ],
)
def test_a_prompt_that_is_too_long_is_said_so(error: Exception) -> None:
    assert (getattr(error, "code", ""), getattr(error, "retryable", True)) == ("context_length_exceeded", False)
    assert getattr(error, "shown", "") == str(error)

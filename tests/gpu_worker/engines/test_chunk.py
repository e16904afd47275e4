"""Events of a streamed chat completion, as usual and otherwise: what they say, or that they cannot be read."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engines.chunk import Choice, Chunk, Delta, Error, Odd, Unreadable, Usage, strict

USUAL: st.SearchStrategy[dict[str, object]] = st.builds(
    dict,
    choices=st.lists(
        st.fixed_dictionaries(
            {
                "index": st.just(0),
                "delta": st.dictionaries(st.sampled_from(["content", "reasoning_content"]), st.text()),
            },
            optional={"finish_reason": st.sampled_from(["stop", "length", None]), "logprobs": st.none()},
        ),
        max_size=2,
    ),
    usage=st.none()
    | st.fixed_dictionaries({"prompt_tokens": st.integers(0, 99), "completion_tokens": st.integers(0, 99)}),
)


def texts(chunk: Chunk) -> list[tuple[str, str, str | None]]:
    deltas = [(choice.delta or Delta(), choice.finish_reason) for choice in chunk.choices]
    return [(delta.content or "", delta.reasoning_content or "", reason) for delta, reason in deltas]


@given(USUAL)
def test_what_is_said_as_usual_is_the_same_looked_at_field_by_field(said: dict[str, object]) -> None:
    data = json.dumps(said).encode()
    usual, odd = strict(data), Odd().read(data)
    assert (texts(usual), usual.usage, usual.error) == (texts(odd), odd.usage, odd.error)


def content(said: object) -> bytes:
    return json.dumps({"choices": [{"delta": {"content": said}}]}).encode()


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], ("ab", "", None)),
        (["a", {"text": "b"}, {"type": "text", "text": None}], ("ab", "", None)),
        ([{"type": "reference", "ids": [1]}, {"type": "text", "text": "a"}], ("a", "", None)),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}], ("", "hm", None)),
        ([], ("", "", None)),
    ],
)
def test_a_text_may_come_in_parts(said: object, read: tuple[str, str, str | None]) -> None:
    assert texts(Odd().read(content(said))) == [read]


@pytest.mark.parametrize("said", [7, {"a": 1}, [7], [{"type": "text", "text": 7}], True])
def test_what_may_be_a_text_and_cannot_be_read_is_not_passed_over(said: object) -> None:
    with pytest.raises(Unreadable):
        Odd().read(content(said))


@given(st.text(), st.lists(st.integers(0, 200)))
def test_a_character_in_two_halves_is_one(text: str, at: list[int]) -> None:
    """As JavaScript cuts strings: between the two units of a character, too."""
    units = text.encode("utf-16-le")
    cuts = sorted({2 * place for place in at if 2 * place < len(units)} | {0, len(units)})
    odd = Odd()
    read = ""
    for first, last in itertools.pairwise(cuts):
        part = units[first:last].decode("utf-16-le", "surrogatepass")
        read += texts(odd.read(content(part)))[0][0]
    assert read == text
    assert not odd.half


def test_half_a_character_that_stays_alone_is_no_text() -> None:
    odd = Odd()
    said = [texts(odd.read(content(part)))[0][0] for part in ("a\ud83d", "b", "\ude00c", "\ud83d\ud83d", "\ude00")]
    assert said == ["a", "\ufffdb", "\ufffdc", "\ufffd", "😀"]
    assert all(one.encode() for one in said)


def test_errors_are_found_wherever_they_are_said() -> None:
    for said in ({"error": {"message": "no", "code": 400}}, {"object": "error", "message": "no", "code": 400}):
        assert Odd().read(json.dumps(said).encode()).error == Error("no", None, 400)
    assert Odd().read(b'{"error":"no"}').error == Error("no")
    assert Odd().read(b'{"error":{"message":["no"],"code":4.5}}').error == Error()
    assert Odd().read(b'{"error":null}') == Chunk()


def test_only_the_first_answers_words_are_read() -> None:
    said = b'{"choices":[{"index":1,"delta":7,"finish_reason":["x"]}],"usage":{"prompt_tokens":3}}'
    assert Odd().read(said) == Chunk([Choice(1, None, "stop")], Usage(3, 0))


@pytest.mark.parametrize(
    "data", [b"{", b"7", b"[]", b'"x"', b"[" * 100_000, b'{"x":' * 100_000, b'{"choices":{"a":1}}']
)
def test_what_is_no_event_is_unreadable(data: bytes) -> None:
    with pytest.raises(Unreadable):
        Odd().read(data)

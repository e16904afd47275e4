"""Servers that speak OpenAI's protocol as they see it: they are understood, and no answer is lost to a detail."""

import asyncio
import json
from typing import Any

import pytest

from gpu_worker import believed, patience
from gpu_worker.bound import Bound
from gpu_worker.engines import EngineFailed, Finish, Piece, Prefix, Tap, http, openai
from gpu_worker.engines.engine import BROKE_OFF, PIECE_TEXT, UNREADABLE
from tests.gpu_worker.bed import Bed
from tests.gpu_worker.engines.test_openai import ask, delta, document, engine, play, server, staying, stream

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def events(*payloads: str) -> bytes:
    """An answer of these payloads, as they are."""
    return HEAD + "".join(f"data: {payload}\n\n" for payload in payloads).encode()


def said(answer: bytes) -> Any:
    return server(lambda path, body: answer)


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


A, B_END = json.dumps(delta(content="a")), json.dumps(delta("stop", content="b"))

LASTS = [
    '{"choices":[],"usage":{"prompt_tokens":null,"completion_tokens":null,"total_tokens":null}}',
    '{"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":-7}}',
    '{"choices":[],"usage":{"prompt_tokens":99999999999,"completion_tokens":99999999999}}',
    '{"choices":[],"usage":{"prompt_tokens":1.5,"completion_tokens":true}}',
    '{"choices":[],"usage":"free"}',
    '{"choices":null,"usage":null}',
    '{"choices":7}',
    "",
    "{",
    "[" * 100_000,
    '"over"',
    '{"error":{"message":"too late","code":500}}',
    '{"error":"too late"}',
]


@pytest.mark.parametrize("last", LASTS, ids=range(len(LASTS)))
async def test_what_follows_the_finish_reason_costs_no_answer(last: str) -> None:
    """What was counted here stands in for what the server does not tell."""
    async with said(events(A, B_END, last, "[DONE]")) as url, engine(url) as made:
        pieces, finish = await play(made, ask())
    assert (text(pieces), finish) == ("ab", Finish("stop", 0, 2))


async def test_usage_that_is_told_in_part_is_taken_in_part() -> None:
    last = '{"choices":null,"usage":{"prompt_tokens":5,"completion_tokens":null}}'
    async with said(events(A, B_END, last)) as url, engine(url) as made:
        assert (await play(made, ask()))[1] == Finish("stop", 5, 2)


@pytest.mark.parametrize(
    "answer",
    [
        events(A, '{"choices":null}', '{"choices":[],"usage":{"prompt_tokens":null}}', B_END, "[DONE]"),
        events(A, '{"choices":[{"delta":null,"finish_reason":null,"index":null}],"usage":[]}', B_END, "[DONE]"),
    ],
)
async def test_nulls_within_an_answer_say_nothing(answer: bytes) -> None:
    async with said(answer) as url, engine(url) as made:
        assert text((await play(made, ask()))[0]) == "ab"


@pytest.mark.parametrize(
    "wrong",
    ['{"choices":{}}', '{"choices":["x"]}', '{"choices":[{"delta":"x"}]}', '{"choices":[{"delta":{"content":7}}]}'],
)
async def test_what_might_be_words_is_not_passed_over(wrong: str) -> None:
    """An answer with a hole would look whole."""
    async with said(events(A, wrong, B_END, "[DONE]")) as url, engine(url) as made:
        with pytest.raises(EngineFailed) as caught:
            await play(made, ask())
    assert caught.value.retryable


async def test_a_connection_that_breaks_behind_the_finish_reason_costs_no_answer() -> None:
    cut = stream(delta(content="a"), delta("stop", content="b"), done=False).replace(
        b"\r\n\r\n", b"\r\ncontent-length: 9999\r\n\r\n", 1
    )
    async with said(cut) as url, engine(url) as made:
        assert text((await play(made, ask()))[0]) == "ab"


async def test_an_end_that_is_never_said_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server keeps the connection and its silence: the viewer has the answer, and need not wait for its end."""
    monkeypatch.setattr(openai, "END_TIMEOUT", 0.1)
    whole = stream(delta(content="a"), delta("stop", content="b"), done=False)
    async with staying(whole) as (url, gone), engine(url) as made, asyncio.timeout(10):
        assert text((await play(made, ask()))[0]) == "ab"
        await gone.wait()


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"\xef\xbb\xbf" + events(A, B_END, "[DONE]").removeprefix(HEAD),
        HEAD + events(A, B_END, "[DONE]").removeprefix(HEAD).replace(b"\n", b"\r"),
        HEAD + events(A, B_END, "[DONE]").removeprefix(HEAD).replace(b"\n\n", b"\n"),
        events(A.replace(", ", ",\ndata: "), B_END, "[DONE]"),
        events('{"choices":[{"delta":{"content":[{"type":"text","text":"a"}]}}]}', B_END, "[DONE]"),
        events('{"choices":[{"index":1,"delta":{"content":"x"},"finish_reason":"stop"}]}', A, B_END, "[DONE]"),
        events('{"choices":[{"delta":{"refusal":"a"}}]}', B_END, "[DONE]"),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + events(A, B_END, "[DONE]"),
    ],
    ids=["BOM", "CR", "no blank lines", "lines", "parts", "n > 1", "refusal", "1xx"],
)
async def test_an_answer_that_is_told_otherwise_is_the_same_answer(answer: bytes) -> None:
    async with said(answer) as url, engine(url) as made:
        pieces, finish = await play(made, ask())
    assert (text(pieces), finish.finish_reason) == ("ab", "stop")


async def test_a_character_that_comes_in_halves_is_whole() -> None:
    halves = [json.dumps(delta(content=half)) for half in ("a\ud83d", "\ude00", "b\ud83d", "c")]
    async with said(events(*halves, B_END, "[DONE]")) as url, engine(url) as made:
        assert text((await play(made, ask()))[0]) == "a😀b\ufffdcb"


@pytest.mark.parametrize(("long", "told"), [("x" * 200_000, 0), ("é😀" * 40_000, 9), ("x" * 200_000, 5_000)])
async def test_very_much_at_once_comes_in_pieces_that_a_frame_can_hold(long: str, told: int) -> None:
    usage = {"usage": {"prompt_tokens": 1, "completion_tokens": told}} if told else {}
    async with said(stream(delta(content=long) | usage, delta("stop", content="b"))) as url, engine(url) as made:
        pieces, finish = await play(made, ask())
    assert text(pieces) == long + "b"
    assert max(len(piece.text.encode()) for piece in pieces) <= PIECE_TEXT
    assert sum(piece.n for piece in pieces) == finish.completion_tokens == max(told, len(pieces) - 1) + 1


CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "answer",
    [
        stream(delta(tool_calls=[CALL]), delta("stop")),
        stream(delta(content="Let me look."), delta("tool_calls")),
        stream(delta(function_call={"name": "f"}), delta("function_call")),
        events('{"choices":[{"index":null,"delta":{"tool_calls":[{"index":0}]}}]}', "[DONE]"),
    ],
)
async def test_a_model_that_calls_a_tool_has_not_answered(answer: bytes) -> None:
    """Nobody would call it, and the answer would look like one."""
    async with said(answer) as url, engine(url) as made:
        with pytest.raises(EngineFailed, match="tools are not supported") as caught:
            await play(made, ask())
    assert (caught.value.code, caught.value.retryable) == ("unsupported", False)
    assert caught.value.shown == caught.value.message


@pytest.mark.parametrize("then", ["{", '{"error":{"message":"cuda"}}', "[DONE]"])
async def test_a_server_that_fails_behind_each_token_is_not_asked_without_end(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    monkeypatch.setattr(patience, "PAUSE", (0.001, 0.005))
    async with said(events(A, then)) as url, engine(url) as made, bed.worker("w1", made):
        await bed.enqueue(await bed.ask("g1", [], model="m", enqueue=False))
        end = (await bed.ended("g1")).fields()
        assert (end["code"], bed.text("g1")) == ("attempts_exhausted", "a" * patience.MOST_FAILURES)
        assert end["message"].startswith(f"{patience.MOST_FAILURES} attempts in a row broke off: the engine")


# -- what viewers hear of failures -------------------------------------------------------------------------------------

REFUSED = "Incorrect API key provided: sk-abc. Ask at http://10.0.0.7:8000/keys."


@pytest.mark.parametrize(
    ("answer", "retryable", "message"),
    [
        (document(401, {"error": {"message": REFUSED}}), False, "the engine does not accept this worker"),
        (document(422, {"error": {"message": REFUSED}}), False, "422: Incorrect API key provided: … Ask at …"),
        (document(422, {"error": {"message": "not mykey!"}}), False, "422: not …!"),
        (
            b"HTTP/1.1 302 F\r\nlocation: http://10.0.0.7/\r\ncontent-length: 0\r\n\r\n",
            False,
            "the engine is not where",
        ),
        (stream({"error": {"message": REFUSED, "code": 403}}), False, "the engine does not accept this worker"),
        (events("{"), True, "3 attempts in a row gave no new token: the engine's answer could not be read"),
        (document(500, {"error": REFUSED}), True, "3 attempts in a row gave no new token: the engine failed"),
    ],
)
async def test_viewers_hear_whether_to_ask_again_and_no_secret(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, answer: bytes, retryable: bool, message: str
) -> None:
    monkeypatch.setattr(patience, "PAUSE", (0.001, 0.005))
    async with said(answer) as url, engine(url, openai_key="mykey") as made, bed.worker("w1", made):
        await bed.enqueue(await bed.ask("g1", [], model="m", enqueue=False))
        end = (await bed.ended("g1")).fields()
        assert end["retryable"] is retryable
        assert end["message"].startswith(message)
        assert end["code"] == ("attempts_exhausted" if retryable else "engine_failed")


async def test_the_log_has_the_words_of_a_refusal_but_no_key() -> None:
    answer = document(401, {"error": {"message": f"not mykey, {REFUSED}"}})
    async with said(answer) as url, engine(url, openai_key="mykey") as made:
        with pytest.raises(EngineFailed) as caught:
            await believed.poured(made, "m", ask(), Prefix(), Bound(None, 1024), lambda piece: None, Tap())
    assert caught.value.message == "401: not …, Incorrect API key provided: … Ask at http://10.0.0.7:8000/keys."


# -- other ways to answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["abort", "error", "insufficient_system_resource"])
async def test_an_answer_that_the_server_cut_short_has_not_ended(reason: str) -> None:
    async with said(stream(delta(content="a"), delta(reason))) as url, engine(url) as made:
        with pytest.raises(EngineFailed, match=reason) as caught:
            await play(made, ask())
    assert caught.value.retryable


async def test_a_server_that_does_not_stream_has_answered() -> None:
    whole = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "a b"}, "finish_reason": "length"}]}
    answer = document(200, whole | {"usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    async with said(answer) as url, engine(url) as made:
        assert await play(made, ask()) == ([Piece("a b", 2)], Finish("length", 3, 2))


@pytest.mark.parametrize(
    ("answer", "retryable", "shown"),
    [
        (document(200, {"error": {"message": "no", "code": 400}}), False, "400: no"),
        (document(200, {"object": "error", "message": "no", "code": 400}), False, "400: no"),
        (stream({"object": "error", "message": "no", "code": 400}), False, "400: no"),
        (document(422, {"detail": "no"}), False, "422: no"),
        (document(422, {"detail": [{"msg": "no"}]}), False, "422: no reason given"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html>", True, UNREADABLE),
        (HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n") + b"\x1f\x8b", True, BROKE_OFF),
        (HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: gzip, chunked\r\n\r\n"), True, BROKE_OFF),
        (b"HTTP/1.1 401 No\r\ncontent-length: 99\r\n\r\n{", False, "the engine does not accept this worker"),
        (b"HTTP/1.1 400 No\r\ncontent-length: 500000\r\n\r\n" + b"x" * 500_000, False, "400: no reason given"),
        (b"HTTP/1.1 400 No\r\n\r\n" + b'{"error":' * 100_000, False, "400: no reason given"),
        (b"HTTP/1.1 400 No\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b", False, "400: no reason given"),
    ],
)
async def test_failures_are_understood_wherever_they_are_said(answer: bytes, retryable: bool, shown: str) -> None:
    async with said(answer) as url, engine(url) as made:
        with pytest.raises(EngineFailed) as caught:
            await play(made, ask())
    assert (caught.value.retryable, caught.value.shown) == (retryable, shown)


@pytest.mark.parametrize("head", [b"HTTP/1.1 204 No\r\n\r\n", b"HTTP/1.1 401 No\r\ncontent-length: 9\r\n\r\n{"])
async def test_a_refusal_whose_reason_does_not_come_is_one(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr(http, "REFUSAL_TIMEOUT", 0.1)
    async with staying(head) as (url, gone), engine(url) as made, asyncio.timeout(10):
        with pytest.raises(EngineFailed) as caught:
            await play(made, ask())
        await gone.wait()
    assert not caught.value.retryable

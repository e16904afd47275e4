"""The scripted engine."""

import asyncio
import json
import time

import pytest

from gpu_worker.engines import (
    EngineFailed,
    EngineSettings,
    EngineUnavailable,
    Finish,
    Message,
    Piece,
    Prefix,
    Prompt,
    create,
)


def prompt(max_tokens: int | None = None, **script: object) -> Prompt:
    return Prompt((Message("user", json.dumps(script)),), max_tokens)


async def play(engine_prompt: Prompt, prefix: Prefix | None = None) -> tuple[list[Piece], Finish]:
    engine = create("scripted")
    items = [item async for item in engine.generate("scripted", engine_prompt, prefix or Prefix())]
    finish = items.pop()
    pieces = [item for item in items if isinstance(item, Piece)]
    assert isinstance(finish, Finish)
    assert len(pieces) == len(items)
    return pieces, finish


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def test_every_byte_is_the_scripts() -> None:
    """Token i is "{seed}.{i} ", whatever the pieces; their n add up."""
    async with asyncio.timeout(10):
        pieces, finish = await play(prompt(tokens=1000, rate=0, seed=3))
    assert text(pieces) == "".join(f"3.{i} " for i in range(1000))
    assert sum(piece.n for piece in pieces) == 1000
    assert max(piece.n for piece in pieces) <= 64
    assert (finish.finish_reason, finish.completion_tokens) == ("stop", 1000)


async def test_a_token_may_tell_when_it_was_made() -> None:
    """In microseconds of the machine's monotonic clock, behind its number."""
    began = time.monotonic_ns() // 1000
    async with asyncio.timeout(10):
        pieces, _ = await play(prompt(tokens=40, rate=200, burst=4, clock=True), Prefix(("x ",), 20))
    ended = time.monotonic_ns() // 1000
    told = [tuple(map(int, token.split(":"))) for piece in pieces for token in piece.text.split()]
    assert [index for index, _ in told] == list(range(20, 40))
    times = [at for _, at in told]
    assert began < times[0] < times[-1] < ended
    assert times == sorted(times)
    due = [(index - 20) // 4 * 20_000 for index, _ in told]  # steps of four, 20 ms apart
    assert all(at - began > after - 1000 for at, after in zip(times, due, strict=True))


async def test_a_takeover_goes_on_where_the_log_ends() -> None:
    """At offset k the next token is k, and the usage counts all epochs."""
    async with asyncio.timeout(10):
        pieces, finish = await play(prompt(tokens=10, rate=0, seed=3), Prefix(("3.0 3.1 3.2 ",), 3))
        nothing, done = await play(prompt(tokens=3, rate=0, seed=3), Prefix(("3.0 3.1 3.2 ",), 3))
    assert text(pieces) == "".join(f"3.{i} " for i in range(3, 10))
    assert finish.completion_tokens == 10
    assert not nothing
    assert done.completion_tokens == 3


async def test_max_tokens_cuts_and_says_so() -> None:
    """A script longer than max_tokens ends with `length`; without one it is played to its end."""
    async with asyncio.timeout(10):
        pieces, finish = await play(prompt(max_tokens=4, tokens=9, rate=0))
        whole, stopped = await play(prompt(max_tokens=9, tokens=9, rate=0))
    assert sum(piece.n for piece in pieces) == finish.completion_tokens == 4
    assert finish.finish_reason == "length"
    assert sum(piece.n for piece in whole) == 9
    assert stopped.finish_reason == "stop"


async def test_it_fails_where_the_script_says() -> None:
    """fail_at raises after exactly the tokens before it, here and in every later epoch; not retryable."""
    engine = create("scripted")
    for prefix in (Prefix(), Prefix(("7.0 ", "7.1 7.2 "), 3)):
        answer = engine.generate("scripted", prompt(tokens=9, rate=0, fail_at=3), prefix)
        got = ""
        async with asyncio.timeout(10):
            if not prefix.tokens:
                first = await anext(answer)
                assert isinstance(first, Piece)
                got = first.text
            with pytest.raises(EngineFailed) as caught:
                await anext(answer)
        assert prefix.text + got == "7.0 7.1 7.2 "
        assert (caught.value.code, caught.value.retryable) == ("engine_failed", False)


async def test_it_says_what_is_no_text_where_the_script_says() -> None:
    """In place of exactly that token, in an item of its own, here and in every later epoch; it goes on if it may."""
    for said in (0, 3):
        prefix = Prefix(tuple(f"7.{i} " for i in range(said)), said)
        async with asyncio.timeout(10):
            pieces, _ = await play(prompt(tokens=9, rate=0, broken_at=3), prefix)
        (broken,) = [piece for piece in pieces if not piece.text.isascii()]
        with pytest.raises(UnicodeEncodeError):
            broken.text.encode()
        assert broken.n == 1
        before = pieces[: pieces.index(broken)]
        assert prefix.text + text(before) == "7.0 7.1 7.2 "
        assert text(pieces[len(before) + 1 :]) == "".join(f"7.{i} " for i in range(4, 9))


async def test_a_prompt_that_is_no_script_fails() -> None:
    """The engine names the field too, should a prompt reach it unchecked."""
    with pytest.raises(EngineFailed, match="tokens"):
        await play(prompt(tokens=-1))


async def test_the_script_is_the_last_thing_the_user_said() -> None:
    """Whatever else was said behind it: so it was when the generation was accepted."""
    said = (("user", '{"tokens": 9}'), ("system", "x"), ("user", '{"tokens": 2, "rate": 0}'), ("tool", "x"))
    async with asyncio.timeout(10):
        pieces, _ = await play(Prompt(tuple(Message(role, content) for role, content in said)))
    assert text(pieces) == "7.0 7.1 "


async def test_the_pace_does_not_drift() -> None:
    """200 tokens at 400/s with the stall and the time to the first token take what they add up to, though every
    wake-up is late.
    """
    began = time.monotonic()
    async with asyncio.timeout(10):
        await play(prompt(tokens=200, rate=400, ttft_ms=100, stall_at=100, stall_ms=100))
    assert 0.69 < time.monotonic() - began < 2


async def test_a_slow_reader_pauses_it_and_catches_up() -> None:
    """Tokens that fell due while nobody pulled come together, in pieces of at most 64."""
    engine = create("scripted")
    answer = engine.generate("scripted", prompt(tokens=200, rate=1000), Prefix())
    async with asyncio.timeout(10):
        first = await anext(answer)
        late = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1, late.set)
        await late.wait()
        rest = [item async for item in answer]
    assert isinstance(first, Piece)
    pieces = [first, *(item for item in rest if isinstance(item, Piece))]
    assert text(pieces) == "".join(f"7.{i} " for i in range(200))
    assert max(piece.n for piece in pieces) == 64


async def test_a_cancelled_generation_gives_its_slot_back() -> None:
    """With every slot taken the next is refused as overloaded; closing one makes room at once."""
    engine = create("scripted", EngineSettings(scripted_slots=2))
    async with asyncio.timeout(10):
        running = [engine.generate("scripted", prompt(tokens=9, rate=1), Prefix()) for _ in range(2)]
        for answer in running:
            await anext(answer)
        with pytest.raises(EngineFailed) as caught:
            await anext(engine.generate("scripted", prompt(), Prefix()))
        assert (caught.value.code, caught.value.retryable) == ("overloaded", True)
        await running[0].aclose()
        again = engine.generate("scripted", prompt(), Prefix())
        assert isinstance(await anext(again), Piece)
        await again.aclose()
        await running[1].aclose()


async def test_closing_ends_running_generations() -> None:
    """A generation that waits for its next token when the engine closes fails, retryable, instead of hanging."""
    engine = create("scripted")
    answer = engine.generate("scripted", prompt(tokens=9, rate=0.01), Prefix())
    async with asyncio.timeout(10):
        await anext(answer)
        waiting = asyncio.ensure_future(anext(answer))
        await asyncio.wait({waiting}, timeout=0)
        await engine.close()
        await engine.close()
        with pytest.raises(EngineFailed) as caught:
            await waiting
    assert caught.value.retryable


async def test_a_thousand_at_once_are_exact_and_in_time() -> None:
    """1 000 generations at 20 tokens/s end when they should."""
    engine = create("scripted")

    async def one(seed: int) -> None:
        got = ""
        async for item in engine.generate("scripted", prompt(tokens=20, rate=20, seed=seed, jitter=0.5), Prefix()):
            got += item.text if isinstance(item, Piece) else ""
        assert got == "".join(f"{seed}.{i} " for i in range(20))

    began = time.monotonic()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for seed in range(1000):
            tasks.create_task(one(seed))
    assert time.monotonic() - began < 10


def test_engines_are_known_by_name() -> None:
    """A name that is not built, or not known, says what there is."""
    for name in ("vllm", "ollama", "tensorflow"):
        with pytest.raises(EngineUnavailable, match=f"'{name}' is not built yet.*smollm2, scripted"):
            create(name)
    with pytest.raises(EngineUnavailable, match=r"no engine 'gpt'.*smollm2, scripted"):
        create("gpt")
    card = create("scripted").cards[0]
    assert (card.id, card.engine) == ("scripted", "scripted")

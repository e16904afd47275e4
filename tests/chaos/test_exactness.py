"""The measuring of takeovers on the real model: that it notices what differs, and that its page says all of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from compose.chaos import exactness
from compose.chaos.exactness import Answer, Exactness, Question, Reading, Try, compare, measure, whole
from compose.chaos.exactness_page import TEMPLATE, page
from gpu_worker.engines import EngineFailed, EngineSettings, Piece, Prefix
from gpu_worker.engines.smollm2 import SmolLM2Engine
from tests.test_proofs import functions

ROOT = Path(__file__).parents[2]
JSON = Question("JSON", "Write a JSON object that describes a book.")
STOPPED = Question("stop", "What is the capital of France?", ("Paris",))
TOKENS = 16


@asynccontextmanager
async def engine() -> AsyncIterator[SmolLM2Engine]:
    made = SmolLM2Engine(EngineSettings(slots=1, cache_prompt=False))
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def test_takeovers_of_the_real_model_are_exact() -> None:
    """Every cut of two short answers; the same seed draws the same cuts; nothing is left running."""
    lines: list[str] = []
    found = await measure(100, 1, lines.append, questions=(JSON, STOPPED), max_tokens=TOKENS)
    json, stopped = found.told
    assert (found.cuts, found.exact, found.rate) == (json.pieces + stopped.pieces, found.cuts, 0.0)
    assert json.end_exact
    assert found.joined.reread >= found.joined.changed >= 1, (
        "it has cuts that a takeover from the text alone gets wrong"
    )
    assert found.readings[0] == Reading(1, found.cuts - 2, 0), "behind nothing there is nothing to read"
    assert found.readings[-1] == Reading(0, found.cuts - 2, found.joined.reread)
    assert lines[-1] == f"{found.cuts + 2} of {found.cuts + 2} takeovers, {found.exact + 1} exact"
    assert children() == []

    # The one that cannot be: the space of " Paris" is shown, and "Paris", that ended the answer, is nowhere.
    assert not stopped.end_exact
    [difference] = found.differing
    assert (difference.kind, difference.why, difference.before[-1]) == ("stop", "reread", " ")


async def test_what_differs_is_noticed_and_said_why() -> None:
    """A prefix that is not what was said; the same text joined, whose tokens are others."""
    async with engine() as made:
        said = await whole(made, JSON, TOKENS)
        texts = [piece.text for piece in said.answer.pieces]
        cut = next(at for at in range(1, len(texts)) if texts[at - 1] == texts[at] == "\n") + 1
        tried, right = Try(said, cut), said.answer.prefix(cut)
        assert await compare(made, tried, right, TOKENS) is None

        wrong = Prefix((*right.pieces[:-1], "class"), right.tokens)
        otherwise = await compare(made, tried, wrong, TOKENS)
        assert otherwise is not None
        assert otherwise.without != otherwise.after
        assert otherwise.why == "reread"
        assert otherwise.proof == f"of {cut} tokens the first {cut - 1} are read as they were chosen"

        joined = await compare(made, tried, Prefix((right.text,), right.tokens), TOKENS)
        assert joined is not None
        assert (joined.why, joined.cut, joined.tokens[:4][-1]) == ("reread", cut, "\n")
        assert joined.proof == f"of {cut} tokens the first {cut - 2} are read as they were chosen"

        # The right tokens, so it must have been computed otherwise: what would have been said is made up.
        other = Answer((*said.answer.pieces[:cut], Piece("class", 1)), said.answer.finish)
        rounded = await compare(made, Try(said._replace(answer=other), cut), right, TOKENS)
        assert rounded is not None
        assert (rounded.why, rounded.without, rounded.parts_at) == ("rounding", "class", 0)

        # The text is the same, its end is not.
        longer = await compare(made, Try(said, len(texts)), Prefix(tuple(texts), TOKENS + 1), TOKENS)
        assert longer is not None
        assert longer.ended == f"length, {TOKENS} tokens against length, {TOKENS + 1} tokens"


async def test_an_engine_that_fails_ends_the_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the engine's own error, and with its process."""

    async def fails(*_: object) -> None:
        raise EngineFailed("engine_failed", "the child died", retryable=True)

    monkeypatch.setattr(exactness, "compare", fails)
    with pytest.raises(EngineFailed, match="the child died"):
        await measure(3, 1, lambda line: None, questions=(JSON,), max_tokens=2)
    assert children() == []


def children() -> list[str]:
    """Processes of engines that run below this one."""
    found = (" ".join(child.cmdline()) for child in psutil.Process().children())
    return [command for command in found if "smollm2_child" in command]


def test_the_page_has_every_figure_and_every_difference() -> None:
    """Rendered from a result; the tests that it names exist."""
    result = {
        "cuts": 40,
        "exact": 39,
        "told": [{"kind": "prose", "tokens": 92, "pieces": 91, "cuts": 40, "exact": 39, "end_exact": True}],
        "differing": [
            {
                "kind": "prose",
                "cut": 7,
                "before": "a `b`\n\n",
                "parts_at": 3,
                "without": "left",
                "after": "",
                "ended": "stop, 92 tokens against stop, 80 tokens",
                "tokens": ["\n", "\n"],
                "why": "reread",
                "proof": "of 7 tokens the first 5 are read as they were chosen",
            }
        ],
        "joined": {"reread": 5, "changed": 4},
        "readings": [{"size": 1, "cuts": 91, "otherwise": 0}, {"size": 0, "cuts": 91, "otherwise": 7}],
        "seed": 11,
        "max_tokens": 96,
        "beside": 4,
        "model": "smollm2",
        "version": "v",
        "machine": "m",
        "at": "2026-01-01T00:00:00+00:00",
        "seconds": 12.5,
        "command": "okome chaos exactness --cuts 40 --seed 11",
    }
    text = page(msgspec.convert(result, Exactness))
    assert "`okome chaos exactness --cuts 40 --seed 11 --write docs/takeover.md`" in text
    assert "the same in 39 of 40 cuts" in text
    assert "| prose | 92 | 91 | 40 | 39 | exact |" in text
    assert "| all of the text | 91 | 7 (7.7%) |" in text
    assert r"behind token 7, `a ˋbˋ\n\n`. The same for 3 characters" in text
    assert "without a takeover `left`, with one nothing (stop, 92 tokens against stop, 80 tokens)" in text
    assert r"`\n` `\n`. Why: the stored text has other tokens than the model chose (of 7 tokens" in text
    assert "$" not in text

    (bound,) = re.findall(r'its bound: \[chaos.md\]\(chaos.md\), "([^"]+)"', text)
    assert f"| {bound} |" in (ROOT / "docs" / "chaos.md").read_text(encoding="utf-8")

    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 5
    assert [f"{path} {name}" for path, name in named if name not in functions(ROOT / path)] == []


def test_the_page_in_docs_is_the_one_that_the_command_writes() -> None:
    """Its sentences, that is: its figures are those of the run that it names."""
    written = (ROOT / "docs" / "takeover.md").read_text(encoding="utf-8")
    lines = [line for line in TEMPLATE.read_text(encoding="utf-8").splitlines() if "$" not in line]
    assert [line for line in lines if line not in written] == []

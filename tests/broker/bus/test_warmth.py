"""Warm prefixes: what a worker holds after an answer is what the next turn looks for."""

from __future__ import annotations

from broker.bus.records import Message
from broker.bus.warmth import MAX_PREFIXES, prefix_hash, wanted

FIRST = [Message("user", "hello"), Message("assistant", "Hi")]


def test_the_next_turn_wants_the_conversation_so_far() -> None:
    assert wanted("m", [*FIRST, Message("user", "more")]) == [prefix_hash("m", FIRST)]


def test_the_longest_prefix_is_wanted_first_and_not_without_end() -> None:
    long = [*FIRST, Message("user", "more"), Message("assistant", "Yes"), Message("user", "why")]
    assert wanted("m", long) == [prefix_hash("m", long[:4]), prefix_hash("m", long[:2])]
    assert len(wanted("m", FIRST * 20)) == MAX_PREFIXES


def test_a_first_turn_and_another_model_want_nothing_of_it() -> None:
    assert wanted("m", [Message("user", "hello")]) == []
    assert prefix_hash("m", FIRST) != prefix_hash("n", FIRST)
    assert prefix_hash("m", [Message("a", "bc")]) != prefix_hash("m", [Message("ab", "c")])

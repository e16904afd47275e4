"""Which prompt prefixes are warm: the hashes that workers put into their beats and OKOME looks for. Pure.

A hint, never a promise: a wrong guess costs one prefill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from broker.bus.records import Message

MAX_PREFIXES = 8  # hashes looked up for one request, the longest prefix first


def prefix_hash(model: str, conversation: Iterable[Message]) -> str:
    """Names a conversation whose tokens an engine may still hold: context and answer."""
    told = msgspec.json.encode([model, [[message.role, message.content] for message in conversation]])
    return hashlib.sha256(told).hexdigest()[:16]


def wanted(model: str, context: Sequence[Message]) -> list[str]:
    """The hashes that would serve a request with this whole context, best first: a warm prefix ends with an answer."""
    ends = [index + 1 for index, message in enumerate(context) if message.role == "assistant"]
    return [prefix_hash(model, context[:end]) for end in reversed(ends[-MAX_PREFIXES:])]

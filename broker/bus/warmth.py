"""Which prompt prefixes are warm: the hashes that workers put into their beats and OKOME looks for. Pure.

A hint, never a promise: a wrong guess costs one prefill.
"""

from __future__ import annotations

import hashlib

from broker.bus.records import Message, Request

MAX_PREFIXES = 8  # hashes looked up for one request, the longest prefix first


def warm_after(request: Request, sid: str, answer: str) -> str:
    """What a worker holds warm once it has answered: the context and the answer."""
    if not request.whole_context:
        return _hash(request.model, sid, [])
    return _hash(request.model, "", [*request.messages, Message("assistant", answer)])


def wanted_by(request: Request, sid: str) -> list[str]:
    """The hashes that would serve this request, best first."""
    if not request.whole_context:
        return [_hash(request.model, sid, [])]
    longest = len(request.messages) - 1
    return [_hash(request.model, "", request.messages[:n]) for n in range(longest, max(0, longest - MAX_PREFIXES), -1)]


def _hash(model: str, sid: str, messages: list[Message]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in [model, sid, *(text for message in messages for text in (message.role, message.content))]:
        data = part.encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.hexdigest()

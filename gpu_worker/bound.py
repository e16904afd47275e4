"""How much an answer may say, for engines that do not keep to what they were asked. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_worker.engines import Piece


@dataclass(slots=True)
class Bound:
    """Over all epochs, reasoning included: tokens as offsets count them, and bytes of UTF-8.

    max_tokens: None for as many as the engine likes. tokens, size: said so far.
    """

    max_tokens: int | None
    max_size: int
    tokens: int = 0
    size: int = 0

    def admits(self, piece: Piece) -> bool:
        """Whether it may still be said; it is counted then. A piece is never cut, so the last one may go beyond."""
        if self.size >= self.max_size or (self.max_tokens is not None and self.tokens >= self.max_tokens):
            return False
        self.tokens += piece.n
        self.size += len(piece.text) if piece.text.isascii() else len(piece.text.encode())
        return True

"""What stands between an engine and a reader: nothing, our pacer, or the AI SDK's smoothStream. In virtual time."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from bench.peers import NpmPackage
from bench.trace import Stream
from broker.node.events import Event
from broker.node.pacer import Pacer
from broker.node.settings import NodeSettings

SAME_WRITE = 0.0005
"""Seconds between tokens that a node reads in one wake-up."""
PLAY_TIMEOUT = 120.0


class PeerFailed(Exception):
    """A peer that is here did not do what was asked; the message has its last words."""


class Pacing(Protocol):
    """One line of the table. `missing`: the command that installs it, "" if it is here."""

    @property
    def name(self) -> str: ...

    @property
    def missing(self) -> str: ...

    def shown(self, streams: Sequence[Stream]) -> list[list[float]]:
        """When each token of each stream is out, in seconds as they came. Raises OSError, PeerFailed."""


class AsItComes:
    name = "none"
    missing = ""

    def shown(self, streams: Sequence[Stream]) -> list[list[float]]:
        return [[token.at for token in stream] for stream in streams]


class Ours:
    """The node's pacer with its default window, offered what comes together, and asked when it says."""

    missing = ""

    def __init__(self) -> None:
        self._window: float = NodeSettings.model_fields["pacer_window"].default

    @property
    def name(self) -> str:
        return f"okome, {self._window * 1000:g} ms"

    def shown(self, streams: Sequence[Stream]) -> list[list[float]]:
        return [self._play(stream) for stream in streams]

    def _play(self, stream: Stream) -> list[float]:
        pacer = Pacer(self._window)
        out = [0.0] * len(stream)
        coming = 0

        def take(now: float) -> None:
            for event in pacer.take(now):
                out[int(event.cursor)] = now

        while coming < len(stream):
            now = stream[coming].at
            while (due := pacer.due) is not None and due <= now:
                take(due)
            together = coming
            while together < len(stream) and stream[together].at - now <= SAME_WRITE:
                together += 1
            now = stream[together - 1].at
            pacer.offer([Event("token", b"", str(index)) for index in range(coming, together)], now)
            take(now)
            coming = together
        while (due := pacer.due) is not None:
            take(due)
        return out


class SmoothStream(NpmPackage):
    """The package itself, asked by `smooth_stream.mjs`: words, 10 ms after each."""

    directory = package = "ai"

    @property
    def name(self) -> str:
        return f"smoothStream, {self.package} {self.version}"

    def shown(self, streams: Sequence[Stream]) -> list[list[float]]:
        argv: list[str | Path] = ["node", Path(__file__).with_name("smooth_stream.mjs"), self.home]
        try:
            done = subprocess.run(
                argv, input=json.dumps(streams), capture_output=True, text=True, timeout=PLAY_TIMEOUT, check=True
            )
        except subprocess.CalledProcessError as error:
            raise PeerFailed(f"{self.package}: {error.stderr[-500:].strip()}") from error
        except subprocess.TimeoutExpired as error:
            raise PeerFailed(f"{self.package}: not done in {PLAY_TIMEOUT:g} s") from error
        return [_of_tokens(stream, pieces) for stream, pieces in zip(streams, json.loads(done.stdout), strict=True)]


def _of_tokens(stream: Stream, pieces: Sequence[tuple[float, int]]) -> list[float]:
    """A token is out when its last character is; lengths are UTF-16 units, as JavaScript counts."""
    ends = list(accumulate(len(token.text.encode("utf-16-le")) // 2 for token in stream))
    out: list[float] = []
    said = 0
    for at, length in pieces:
        said += length
        while len(out) < len(ends) and ends[len(out)] <= said:
            out.append(at)
    return out


def pacings() -> list[Pacing]:
    return [AsItComes(), Ours(), SmoothStream()]

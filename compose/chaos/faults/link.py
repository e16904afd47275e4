"""Faults of links: cut, reset, half open, slow. The proof is what the link's own sockets have seen."""

from __future__ import annotations

from collections.abc import Sequence

from compose.chaos.fault import Fault, shows
from compose.chaos.link import Link

SIGN_TIMEOUT = 20.0
WRONG_TIMEOUT = 3.0
"""The same in a control run, where it will not happen."""


def _within(link: Link, aim: Link) -> float:
    return SIGN_TIMEOUT if aim is link else WRONG_TIMEOUT


def cut(link: Link, aim: Link) -> Fault:
    """Every connection ends, by FIN to both sides."""

    async def strike() -> None:
        aim.cut()

    before = link.counters.cut

    def sign() -> str | None:
        ended = link.counters.cut - before
        return f"{ended} connections of {link.name} were ended by FIN" if ended else None

    return Fault(f"link {link.name}", strike, lambda: shows(sign, f"a cut of {link.name}", _within(link, aim)))


def reset(link: Link, aim: Link) -> Fault:
    """Every connection breaks, by RST to both sides."""

    async def strike() -> None:
        aim.reset()

    before = link.counters.reset

    def sign() -> str | None:
        broken = link.counters.reset - before
        return f"{broken} connections of {link.name} were broken by RST" if broken else None

    return Fault(f"link {link.name}", strike, lambda: shows(sign, f"a reset of {link.name}", _within(link, aim)))


def half_open(links: Sequence[Link], aims: Sequence[Link]) -> Fault:
    """Nothing passes, and nobody is told; `undo` lets it pass again."""
    name = ", ".join(link.name for link in links)

    async def strike() -> None:
        for aim in aims:
            aim.hush()

    async def undo() -> None:
        for aim in aims:
            aim.speak()

    def sign() -> str | None:
        held = sum(link.held for link in links if link.silent)
        return f"{held} bytes were held back on {name}, and nothing passed" if held else None

    return Fault(f"link {name}", strike, lambda: shows(sign, f"silence of {name}", _within(links[0], aims[0])), undo)


def delay(link: Link, aim: Link, seconds: float) -> Fault:
    """Everything takes so much longer, each way."""

    async def strike() -> None:
        aim.delay = seconds

    async def undo() -> None:
        aim.delay = 0.0

    before = link.counters.delayed

    def sign() -> str | None:
        late = link.counters.delayed - before
        return f"{late} bytes of {link.name} came {seconds * 1000:.0f} ms later" if late else None

    return Fault(f"link {link.name}", strike, lambda: shows(sign, f"a delay of {link.name}", _within(link, aim)), undo)


def trickle(link: Link, aim: Link, bytes_per_second: float) -> Fault:
    """Bytes reach the client one after the other."""

    async def strike() -> None:
        aim.throttle = bytes_per_second

    async def undo() -> None:
        aim.throttle = None

    before = link.counters.throttled

    def sign() -> str | None:
        slow = link.counters.throttled - before
        return f"{slow} bytes of {link.name} had to wait for their turn" if slow else None

    return Fault(
        f"link {link.name}", strike, lambda: shows(sign, f"a trickle of {link.name}", _within(link, aim)), undo
    )

"""Latency curves as SVG: how long a token took at most, for the share of tokens that took no longer. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from bench.histogram import CURVE

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 16, 36
GRID = (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0)
SHARES = (0.5, 0.9, 0.99, 0.999)
COLOURS = ("#0b6e4f", "#c44536", "#2660a4", "#8f5db7", "#b08900", "#555555", "#008b9a")
DASHES = ("", "6 3", "2 3")
"""Of a line, one after another where there are more lines than colours."""


def curves(found: Mapping[str, list[float]]) -> str:
    """One line a contender; both axes are logarithmic: milliseconds, and the share that took longer."""
    highest = max((points[-2] for points in found.values()), default=1.0)
    top = next((at for at in GRID if at >= highest), GRID[-1])

    def x(share: float) -> float:
        decades = -math.log10(1 - share) / -math.log10(1 - CURVE[-2])
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, decades)

    def y(milliseconds: float) -> float:
        span = math.log10(top / GRID[0])
        at = math.log10(max(milliseconds, GRID[0]) / GRID[0]) / span
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(1.0, at)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    for at in GRID:
        if at <= top:
            parts.append(
                f'<path d="M{LEFT} {y(at):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
                f'<text x="{LEFT - 6}" y="{y(at) + 4:.1f}" text-anchor="end" fill="#444">{at:.12g} ms</text>'
            )
    for share in SHARES:
        parts.append(
            f'<path d="M{x(share):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>'
            f'<text x="{x(share):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#444">{share:.1%}</text>'
        )
    labels: list[float] = []
    for number, (name, points) in enumerate(sorted(found.items(), key=lambda one: -one[1][-2])):
        colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        path = " ".join(f"{x(share):.1f},{y(point):.1f}" for share, point in zip(CURVE[:-1], points[:-1], strict=True))
        below = len(found) - number - 1
        at = min(max(y(points[-2]) + 4, labels[-1] + 14 if labels else 0.0), HEIGHT - 4 - 14 * below)
        labels.append(at)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'
            f'<text x="{WIDTH - RIGHT + 8}" y="{at:.1f}" fill="{colour}">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>\n"])

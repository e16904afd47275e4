"""The plots of a report, as inline SVG that stretches with the page: text is never in what stretches. Pure.

Colours are the style sheet's custom properties, so that light and dark are its affair.
"""

from __future__ import annotations

import math

from compose.chaos.summary import LONGEST, SHORTEST, Distribution
from compose.chaos.wording import bound, counted, markup, seconds

GRID = (0.01, 0.1, 1.0, 10.0)


def along(value: float) -> float:
    """Where a time lies on the log axis, 0 to 1."""
    return min(max(math.log(max(value, SHORTEST) / SHORTEST) / math.log(LONGEST / SHORTEST), 0.0), 1.0)


def spark(gaps: Distribution, limit: float | None) -> str:
    """A small histogram; a bar's height is the square root of its count, so that a single straggler is still seen."""
    most = max(gaps.histogram)
    bars = "".join(
        f"M{index * 4} 24v-{max(math.sqrt(number / most) * 22, 1.5):.1f}h3V24z"
        for index, number in enumerate(gaps.histogram)
        if number
    )
    tick = f'<path class="bound" d="M{along(limit) * 119:.1f} 0v25"/>' if limit is not None else ""
    return (
        f'<svg class="spark" viewBox="0 0 119 25" preserveAspectRatio="none" role="img" '
        f'aria-label="{markup(_told(gaps, limit))}"><path class="floor" d="M0 24.5h119"/><path d="{bars}"/>{tick}</svg>'
    )


def strip(gaps: Distribution, limit: float | None) -> str:
    """One row of the gap plot: where gaps lie, their percentiles, the bound."""
    most, buckets = max(gaps.histogram), len(gaps.histogram)
    parts = [f'<line class="grid" x1="{at}" x2="{at}" y2="30"/>' for at in map(_percent, GRID)]
    parts += [
        f'<rect x="{index / buckets:.3%}" y="8" width="{1 / buckets:.3%}" height="14" '
        f'opacity="{0.07 + 0.33 * math.sqrt(number / most):.2f}"/>'
        for index, number in enumerate(gaps.histogram)
        if number
    ]
    p50, p90, p99, longest = map(_percent, (gaps.p50, gaps.p90, gaps.p99, gaps.max))
    parts += [
        f'<line class="reach" x1="{p50}" x2="{longest}" y1="15" y2="15"/>',
        f'<line class="box" x1="{p50}" x2="{p99}" y1="15" y2="15"/>',
        f'<circle class="median" cx="{p50}" cy="15" r="3.5"/>',
        f'<line class="p90" x1="{p90}" x2="{p90}" y1="10" y2="20"/>',
        f'<circle class="max" cx="{longest}" cy="15" r="2.5"/>',
        f'<circle cx="{p99}" cy="15" r="4.5"/>',
    ]
    if limit is not None:
        parts.append(f'<line class="bound" x1="{_percent(limit)}" x2="{_percent(limit)}" y1="2" y2="28"/>')
    told = markup(_told(gaps, limit))
    return f'<svg class="strip" role="img" aria-label="{told}"><title>{told}</title>{"".join(parts)}</svg>'


def ruler() -> str:
    """The log axis under the strips."""
    marks = {SHORTEST: ("start", ' class="edge"'), LONGEST: ("end", ' class="edge"')}
    marks |= dict.fromkeys(GRID, ("middle", ""))
    return (
        '<svg class="ruler" aria-hidden="true">'
        + "".join(
            f'<text x="{_percent(at)}" y="14" text-anchor="{anchor}"{edge}>{bound(at)}</text>'
            for at, (anchor, edge) in marks.items()
        )
        + "</svg>"
    )


def legend() -> str:
    """The signs of a strip."""
    signs = {
        "half of the gaps are shorter": '<circle class="median" cx="9" cy="9" r="3.5"/>',
        "p90": '<line class="p90" x1="9" x2="9" y1="4" y2="14"/>',
        "p99": '<circle cx="9" cy="9" r="4.5"/>',
        "longest": '<circle class="max" cx="9" cy="9" r="2.5"/>',
        "bound of the p99": '<line class="bound" x1="9" x2="9" y1="1" y2="17"/>',
    }
    return "".join(
        f'<li><svg class="sign" viewBox="0 0 18 18" aria-hidden="true">{sign}</svg>{word}</li>'
        for word, sign in signs.items()
    )


def _percent(value: float) -> str:
    return f"{along(value):.2%}"


def _told(gaps: Distribution, limit: float | None) -> str:
    values = f"p50 {seconds(gaps.p50)}, p90 {seconds(gaps.p90)}, p99 {seconds(gaps.p99)}, longest {seconds(gaps.max)}"
    return f"{counted(gaps.count, 'gap')}: {values}; {'bound ' if limit is not None else ''}{bound(limit)}"

"""docs/takeover.md: what a takeover keeps and what it cannot, with the figures of one `Exactness`. Pure.

The sentences stand in `takeover.md` beside this file, so that the command that writes the page writes all of it.
"""

from __future__ import annotations

from pathlib import Path
from string import Template

from compose.chaos.exactness import Difference, Exactness, Reading, Told

TEMPLATE = Path(__file__).with_name("takeover.md")

_WHY = {
    "reread": "the stored text has other tokens than the model chose",
    "rounding": "the same tokens, computed in a batch, rounded otherwise",
}


def page(exactness: Exactness) -> str:
    """The whole page. A name in the template that there is no figure for is a KeyError."""
    e = exactness
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        command=e.command,
        at=e.at,
        machine=e.machine,
        version=e.version,
        seconds=f"{e.seconds:.0f}",
        cuts=e.cuts,
        exact=e.exact,
        seed=e.seed,
        answers=len(e.told),
        max_tokens=e.max_tokens,
        beside=e.beside,
        told="\n".join(map(_told, e.told)),
        differing=_differing(e.differing),
        readings="\n".join(map(_reading, e.readings)),
        reread=e.joined.reread,
        changed=e.joined.changed,
    )


def _told(told: Told) -> str:
    end = "exact" if told.end_exact else "differs"
    return f"| {told.kind} | {told.tokens} | {told.pieces} | {told.cuts} | {told.exact} | {end} |"


def _reading(reading: Reading) -> str:
    size = {0: "all of the text", 1: "1 piece"}.get(reading.size, f"{reading.size} pieces")
    share = f" ({reading.otherwise / reading.cuts:.1%})" if reading.otherwise else ""
    return f"| {size} | {reading.cuts} | {reading.otherwise}{share} |"


def _differing(differences: tuple[Difference, ...]) -> str:
    if not differences:
        return ""
    lines = ["", "Where they part:", ""]
    for one in differences:
        pieces = " ".join(map(_code, one.tokens))
        lines += [
            f"- **{one.kind}**, behind token {one.cut}, {_code(one.before)}. The same for {one.parts_at} characters;",
            f"  then without a takeover {_code(one.without)}, with one {_code(one.after)} ({one.ended}).",
            f"  Pieces around the cut: {pieces}. Why: {_WHY[one.why]} ({one.proof}).",
        ]
    return "\n".join([*lines, ""])


def _code(text: str) -> str:
    """As code, on one line; a backtick would end it."""
    return f"`{repr(text)[1:-1].replace('`', 'ˋ')}`" if text else "nothing"

"""The script: what a prompt to the `scripted` model says.

Answers for the type of that JSON object, its ranges, and naming the field that breaks them, so that whoever accepts
the prompt refuses it with the same words as the engine that would play it. Knows nothing of time, tasks or HTTP.
"""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_TOKENS = 1_000_000
MAX_RATE = 100_000
MAX_BURST = 1_024
MAX_WAIT_MS = 600_000

_Index = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
_Milliseconds = Annotated[int, Meta(ge=0, le=MAX_WAIT_MS)]


class ScriptInvalid(ValueError):
    """The text is not a script. `param` names the field that is wrong, and is None when the text as a whole is."""

    def __init__(self, param: str | None, message: str) -> None:
        super().__init__(f"{param}: {message}" if param else message)
        self.param = param
        self.message = message


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One deterministic answer: token `i` (from 0) is exactly `"{seed}.{i} "`; with `clock` it is `"{i}:{t} "`, t being
    when the engine made it, in microseconds of the machine's monotonic clock: whoever reads it there knows how long it
    was on its way.

    rate: tokens per second, 0 = as fast as the engine can. burst: tokens that come at once. jitter: relative spread
    of the gaps between bursts, drawn from `seed`. stall_at / stall_ms: that token, and with it all later ones, comes
    so much later. ttft_ms: time to the first token. fail_at: the engine raises where that token would have come.
    broken_at: the engine says there what is no text (half a character) in its place.
    """

    tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 200
    rate: Annotated[float, Meta(ge=0, le=MAX_RATE)] = 50
    # Beyond 2**53 JavaScript rounds integers: a browser would expect other text than the engine writes.
    seed: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 7
    burst: Annotated[int, Meta(ge=1, le=MAX_BURST)] = 1
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0
    stall_at: _Index | None = None
    stall_ms: _Milliseconds = 0
    ttft_ms: _Milliseconds = 0
    fail_at: _Index | None = None
    broken_at: _Index | None = None
    clock: bool = False

    def token(self, index: int) -> str:
        """The text of token `index`; with `clock` only the engine knows."""
        return f"{self.seed}.{index} "

    def text(self, first: int, last: int) -> str:
        """The text of tokens `first` up to, not including, `last`; with `clock` only the engine knows."""
        seed = self.seed
        return "".join([f"{seed}.{index} " for index in range(first, last)])


_decoder = msgspec.json.Decoder(Script)
_unknown_field = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_at_field = re.compile(r"^(?P<what>.*) - at `\$\.(?P<field>\w+)`$", re.DOTALL)


def parse_script(text: str) -> Script:
    """The script in `text`. Raises ScriptInvalid naming the first field that is wrong."""
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError as error:
        said = str(error)
        if found := _unknown_field.match(said):
            raise ScriptInvalid(found["field"][:64], "is not a field of a script") from error
        if found := _at_field.match(said):
            raise ScriptInvalid(found["field"], found["what"]) from error
        raise ScriptInvalid(None, f"must be a script: {said}") from error
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise ScriptInvalid(None, 'must be a script, a JSON object such as {"tokens": 200, "rate": 50}') from error

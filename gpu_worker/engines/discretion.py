"""What may be told of an engine's own words: to the log all but credentials, to viewers no address either. Pure.

Words are foreign, so this goes by what keys and addresses look like, and rather takes a word too many.
"""

from __future__ import annotations

import re

MOST = 2_000  # characters that are looked at, and kept
HIDDEN = "…"

# The loop stands meanwhile, and whoever fails says what it likes: so what may be long is looked for only where a run of
# its characters begins. Tried at each of them, 2 000 took 0.1 s; so they take 2 ms, whatever they are.
_CREDENTIALS = re.compile(
    r"""
      (?<=://)[^/\s@]+@                                         # of a URL
    | \b(?:bearer|basic)\s+\S+
    | (?<=\bapi[ _-]key[ ]provided:[ ])\S+                      # OpenAI's words
    | (?<=\bapi[ _-]key[:=])\s*\S+
    | \b(?:sk|rk|pk|hf|gsk|xai|nvapi|ok)[-_][\w*.-]{3,}         # by its maker's prefix
    | (?<![\w-])(?=[\w-]+\.)(?:[\w-]*-)?eyJ[\w-]+\.[\w.-]+      # a JWT
    | (?<![\w-])(?=[\w-]*\d)(?=[\w-]*[a-z])[\w-]{32,}           # whatever is as long as one
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ADDRESSES = re.compile(
    r"""
      (?:\b[a-z][a-z0-9+.-]{0,30})?://\S+
    | (?<!\S)\S+@\S+
    | (?:
        \b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b                    # IPv4
      | \[(?=[0-9a-f.]*:)[0-9a-f:.]+\](?::\d+)?                 # IPv6, as in a URL ...
      | (?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])  # ... and bare
      | \blocalhost:\d{1,5}\b
      | (?<![\w.-])[.-]*\w[\w-]*\.[\w.-]+:\d{1,5}\b
      | (?<![\w-])(?=[\w-]*[a-z])[\w-]+:\d{4,5}\b               # a host of one word, and a port
      | (?<![\w.-])[.-]*\w[\w.-]*\.(?:local|internal|svc|lan|corp|com|net|org|io|ai|dev)\b
      )(?:[\w.-]*\w)?(?::\d+(?![\w.-]))?                        # and its run's rest, where none would begin
    | (?<![\w.])(?:/[\w.@-]+){2,}                               # a path
    """,
    re.VERBOSE | re.IGNORECASE,
)


def for_the_log(words: str) -> str:
    return _CREDENTIALS.sub(HIDDEN, words[:MOST])


def for_viewers(words: str) -> str:
    return _ADDRESSES.sub(HIDDEN, for_the_log(words))

"""`okome tail`: a session's stream as it is, with reconnection, until it is told to stop."""

from __future__ import annotations

import sys

from compose.cli import table
from compose.cli.api import follow
from compose.cli.target import Target
from compose.cli.transcript import Transcript


async def tail(target: Target, sid: str, *, after: str, until_done: bool, as_json: bool) -> None:
    transcript = Transcript()
    try:
        async with target.client() as client:
            async for event in follow(client, sid, after=after, until="done" if until_done else ""):
                if as_json:
                    line = {"event": event.name, **({"id": event.id} if event.id else {}), "data": event.data}
                    table.as_json(line)
                    sys.stdout.flush()
                else:
                    transcript.show(event)
    finally:
        if not as_json:
            transcript.end()

"""The API key that a machine's own system and its commands use: whether it still counts, and what helps where not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from broker.bus.credentials import key_id
from broker.bus.nats import Bus
from broker.bus.records import ApiKey
from broker.bus.retry import retry
from broker.bus.settings import RoleSettings

TIMEOUT = 30.0


class Keys(msgspec.Struct, frozen=True):
    """The answer to `key_list`."""

    keys: list[ApiKey]


async def counts(okome: RoleSettings, api_key: str) -> bool:
    """Whether OKOME knows it: a revoked one stays revoked, however often a system is started with it. Raises BusError
    or Refusal."""
    bus = await Bus.of(okome, "okome-up")
    try:
        deadline = asyncio.get_running_loop().time() + TIMEOUT
        known = await retry(lambda: bus.ask("key_list", {}, Keys), deadline)
    finally:
        await bus.close()
    return key_id(api_key) in {one.id for one in known.keys}


def lost(file: Path | None) -> str:
    """What to do about one that does not count; `file` is where it is kept, None where somebody gave it."""
    if file is None:
        return (
            "the API key that was given does not count, perhaps because it was revoked: `okome keys create NAME` makes "
            "another; set OKOME_API_KEY to that"
        )
    return (
        f"the API key in {file} does not count, perhaps because it was revoked: remove that file and start `okome up` "
        "again, which makes another; until then, `okome keys create NAME` makes one for OKOME_API_KEY"
    )

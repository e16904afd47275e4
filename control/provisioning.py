"""Making the streams and buckets, as often as wanted and by as many replicas at once as there are."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from broker.bus.errors import BusUnavailable, StoreRejected
from broker.bus.log import STREAM_NOT_FOUND
from broker.bus.nats import Bus
from control.abreast import abreast
from control.settings import ControlSettings
from control.streams import everything, repaired

NAME_IN_USE = 10058  # there already, with another configuration: its own incarnation at least
NO_PEERS = 10005  # "no suitable peers for placement": not enough servers, or not enough that have found one another yet
NO_SPACE = 10047  # it promises a stream what that may become, out of what the disk has left
PEER_OFFLINE = "peer offline"  # … because one that the others know does not answer them now
PEERS_TIMEOUT = 30.0
ABREAST = 8  # a replicated stream takes 75 ms to make
REQUEST_TIMEOUT = 10.0
RETRY_INTERVAL = 0.25

log = structlog.get_logger("control")


async def provision(bus: Bus, settings: ControlSettings, *, timeout: float = 60.0) -> None:
    """Make what is missing and repair what can be. A cluster that still elects its leaders is waited for, a server that
    the others know and do not hear, and for PEERS_TIMEOUT those that they have not found yet.

    Raises BusUnavailable after `timeout` seconds, and StoreRejected where the server refuses (no space for
    `partitions` × `log_max_bytes`, fewer servers than `replicas`).
    """
    began = asyncio.get_running_loop().time()

    async def one(config: dict[str, Any]) -> None:
        while True:
            try:
                return await ensure(bus, config)
            except (BusUnavailable, StoreRejected) as error:
                patience = 0.0
                match error:
                    case StoreRejected(err_code=code, description=said) if code == NO_SPACE:
                        raise StoreRejected(code, f"{said}: {_room(settings)}") from error
                    case StoreRejected(err_code=code) if code == NO_PEERS:
                        patience = timeout if PEER_OFFLINE in str(error) else min(PEERS_TIMEOUT, timeout)
                    case StoreRejected(err_code=code) if code == STREAM_NOT_FOUND:
                        patience = timeout  # one that another replica is making is in use and not found, for a moment
                    case BusUnavailable():
                        patience = timeout
                if asyncio.get_running_loop().time() - began >= patience:
                    raise
                await asyncio.sleep(RETRY_INTERVAL)

    await abreast(ABREAST, one, everything(settings))


def _room(settings: ControlSettings) -> str:
    """What is asked of a disk, and what to do where it has not that much."""
    of_each = settings.log_max_bytes / 2**20
    return (
        f"NATS has to promise {settings.partitions} logs {of_each:,.0f} MiB each, and its disk has not that much to "
        "give; free some of it, or set OKOME_CONTROL_LOG_MAX_BYTES lower"
    )


async def ensure(bus: Bus, config: dict[str, Any]) -> None:
    """Make one stream, or leave the one that is there, repaired."""
    name = config["name"]
    try:
        # The look comes first: a create that meets the same stream with another incarnation is an error in its log.
        found = await bus.api(f"STREAM.INFO.{name}", timeout=REQUEST_TIMEOUT)
    except StoreRejected as error:
        if error.err_code != STREAM_NOT_FOUND:
            raise
        try:
            await bus.api(f"STREAM.CREATE.{name}", config, timeout=REQUEST_TIMEOUT)
            log.info("stream.created", stream=name)
            return
        except StoreRejected as refused:
            if refused.err_code != NAME_IN_USE:
                raise
            found = await bus.api(f"STREAM.INFO.{name}", timeout=REQUEST_TIMEOUT)  # another replica was first
    change = repaired(found["config"], config)
    if change is not None:
        await bus.api(f"STREAM.UPDATE.{name}", change, timeout=REQUEST_TIMEOUT)
        log.info("stream.repaired", stream=name)

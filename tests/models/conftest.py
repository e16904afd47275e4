"""What makes thousands of interleavings cheap, and short logs like long ones: nobody reads what is logged, idle seconds
hold few events, and a page holds few frames. Wall clocks go with the virtual time."""

import asyncio
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import structlog

from broker.bus import clock, pull
from broker.node import tail
from broker.node.log_reader import LogReader


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What fails is logged by the code that survives it; a tail's heartbeats are as rare as others'."""
    monkeypatch.setattr(tail, "HEARTBEAT", pull.HEARTBEAT)
    monkeypatch.setattr(LogReader, "page_size", 4)
    monkeypatch.setattr(LogReader, "long_page", 8)
    monkeypatch.setattr(clock, "time", SimpleNamespace(time_ns=_virtual_ns))
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


def _virtual_ns() -> int:
    return int(asyncio.get_running_loop().time() * 1_000_000_000)

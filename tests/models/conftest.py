"""What makes thousands of interleavings cheap: nobody reads what is logged, and idle seconds hold few events."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from broker.bus import pull
from broker.node import tail


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What fails is logged by the code that survives it; a tail's heartbeats are as rare as others'."""
    monkeypatch.setattr(tail, "HEARTBEAT", pull.HEARTBEAT)
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)

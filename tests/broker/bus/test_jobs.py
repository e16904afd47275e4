"""The durable consumers of JOBS: made by whoever comes first, and left as they are."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from broker.bus.errors import StoreRejected
from broker.bus.jobs import consumer_config, consumer_name, ensure_consumer
from broker.bus.nats import Bus
from broker.bus.queue import Delivery, Queue
from broker.bus.subjects import JOBS_STREAM, job_subject
from tests.broker.bus.conftest import eventually
from tests.fixtures.nats_server import NatsServer


async def test_a_consumer_that_has_lost_its_files_serves_as_it_is(fresh_bus: Bus, fresh_nats: NatsServer) -> None:
    """▸ Deleted and made again at the same time: a worker that could not make it would wait for ever."""
    await _lose_files(fresh_bus, fresh_nats, consumer_config("m"))
    await ensure_consumer(fresh_bus, "m")
    taken: list[Delivery] = []
    await fresh_bus.request(job_subject("m"), b"job")
    pulling = Queue(fresh_bus, JOBS_STREAM, consumer_name("m"), taken.append)
    await pulling.start()
    pulling.want(1)
    await eventually(lambda: taken)
    await taken[0].ack()
    await pulling.close()


async def test_one_that_is_not_as_it_should_be_is_said_so(fresh_bus: Bus, fresh_nats: NatsServer) -> None:
    await _lose_files(fresh_bus, fresh_nats, {**consumer_config("m"), "max_ack_pending": 1000})
    with pytest.raises(StoreRejected):
        await ensure_consumer(fresh_bus, "m")


async def _lose_files(bus: Bus, nats: NatsServer, config: dict[str, Any]) -> None:
    """Make JOBS and its consumer, whose files are gone then: the server refuses to make it again."""
    queue = {"name": JOBS_STREAM, "subjects": ["job.*.*"], "retention": "workqueue"}
    await bus.api(f"STREAM.CREATE.{JOBS_STREAM}", queue)
    where = f"CONSUMER.CREATE.{JOBS_STREAM}.{config['durable_name']}.{config['filter_subject']}"
    await bus.api(where, {"stream_name": JOBS_STREAM, "config": config})
    (files,) = nats.store_dir.rglob(config["durable_name"])
    shutil.rmtree(files)
    with pytest.raises(StoreRejected):
        await bus.api(where, {"stream_name": JOBS_STREAM, "config": config})


async def test_a_consumer_that_cannot_be_made_is_said_so(fresh_bus: Bus) -> None:
    with pytest.raises(StoreRejected):
        await ensure_consumer(fresh_bus, "m")

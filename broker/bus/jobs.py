"""What is common about JOBS: its durable consumers, one queue per model and one warm lane per worker and model.

Workers pull from them; workers and OKOME both make them, idempotently, so the settings stand here once.
"""

from __future__ import annotations

from typing import Any

import structlog

from broker.bus.errors import StoreRejected
from broker.bus.log import store
from broker.bus.nats import Bus
from broker.bus.subjects import JOBS_STREAM, encode, job_subject

ACK_WAIT = 30.0  # seconds; liveness is the beat, this is only the last resort

log = structlog.get_logger("bus")


def consumer_name(model: str, worker: str | None = None) -> str:
    """`any_<model>`, or the lane `lane_<worker>_<model>`."""
    return f"lane_{worker}_{encode(model)}" if worker else f"any_{encode(model)}"


def consumer_config(model: str, worker: str | None = None) -> dict[str, Any]:
    return {
        "durable_name": consumer_name(model, worker),
        "filter_subject": job_subject(model, worker),
        "ack_policy": "explicit",
        "ack_wait": int(ACK_WAIT * 1e9),
        "deliver_policy": "all",
        "max_deliver": -1,  # attempts are counted in the log, not by the queue
        "max_ack_pending": -1,  # the default stalls job 1 001
    }


async def ensure_consumer(bus: Bus, model: str, worker: str | None = None, *, timeout: float = 5.0) -> None:
    """Make the durable where it is missing; one that is there is left with what it has delivered. Raises BusError.

    nats-server 2.15 keeps one without its files where it was deleted and made again at the same time: it serves, and
    every further CREATE is refused (10012), as others are too.
    """
    config = consumer_config(model, worker)
    name = config["durable_name"]
    try:
        await bus.api(
            f"CONSUMER.CREATE.{JOBS_STREAM}.{name}.{config['filter_subject']}",
            {"stream_name": JOBS_STREAM, "config": config},
            timeout=timeout,
        )
    except StoreRejected as error:
        if not await _serves(bus, config, timeout):
            raise
        log.warning("jobs.consumer_without_files", consumer=name, error=str(error))


async def _serves(bus: Bus, config: dict[str, Any], timeout: float) -> bool:
    """Whether there is such a consumer, as it would be made."""
    try:
        answer = await bus.api(f"CONSUMER.INFO.{JOBS_STREAM}.{config['durable_name']}", timeout=timeout)
    except StoreRejected:
        return False
    return all(answer["config"].get(field) == value for field, value in config.items())


async def copy_to_common(bus: Bus, lane: str, seq: int, gid: str, job: bytes) -> None:
    """Put the job that is message `seq` of a lane (a subject) into its model's common queue, to be deleted in the lane
    then. Raises BusError.

    Whoever dies in between leaves it twice, and its second delivery finds it held or ended. Two that copy it at once
    copy it once, by the message id.
    """
    await store(bus, common_subject(lane), job, msg_id=f"{gid}@{seq}")


def common_subject(lane: str) -> str:
    return lane.rpartition(".")[0] + ".any"


async def count_jobs(bus: Bus, subjects: str) -> dict[str, int]:
    """Jobs that wait or are held, by subject; `subjects` may have wildcards. Raises BusError."""
    answer = await bus.api(f"STREAM.INFO.{JOBS_STREAM}", {"subjects_filter": subjects})
    counted: dict[str, int] = answer["state"].get("subjects") or {}
    return counted


async def count_model_jobs(bus: Bus, model: str) -> int:
    """Those of one model, in its queue and in all lanes. Raises BusError."""
    return sum((await count_jobs(bus, f"job.{encode(model)}.*")).values())

"""Which worker, if any in particular, and whether there is room: decided from beats. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from broker.bus.records import Beat, Load


class Capacity(NamedTuple):
    """What the workers of one model can take."""

    workers: list[str]
    slots: int
    total: int  # slots and places in their queues


class Lane(NamedTuple):
    """Where a job goes: `worker` "" is the model's common queue. `reason` is for whoever asks why."""

    worker: str
    reason: str


def capacity(model: str, beats: Mapping[str, Beat]) -> Capacity:
    """Over the last beats of all workers seen lately."""
    loads = {name: beat.models[model] for name, beat in beats.items() if model in beat.models}
    slots = sum(load.slots for load in loads.values())
    return Capacity(sorted(loads), slots, slots + sum(load.queue_limit for load in loads.values()))


def leaving(model: str, beats: Mapping[str, Beat]) -> int:
    """Jobs that live workers which drain hold to the end: they are in the queue, and wait for nobody.

    A worker says that it drains by offering no slots.
    """
    loads = [beat.models[model] for beat in beats.values() if model in beat.models]
    return sum(load.running for load in loads if not load.slots)


def saturated(beats: Mapping[str, Beat]) -> set[str]:
    """The models that live workers run, and none of them has a slot free for: what waits then waits for its turn.

    `beats`: of live workers. One that drains offers no slots, and is not waited for.
    """
    full: set[str] = set()
    free: set[str] = set()
    for beat in beats.values():
        for model, load in beat.models.items():
            if load.slots:
                (full if load.running + load.queued >= load.slots else free).add(model)
    return full - free


def choose_lane(model: str, wanted: list[str], beats: Mapping[str, Beat], sent: Mapping[str, int]) -> Lane:
    """The lane of the worker that holds the longest wanted prefix warm and can begin at once, else the common queue.

    `beats`: of live workers. `sent`: jobs put into a worker's lane since its last beat.
    """
    full = ""
    for prefix in wanted:
        for name in sorted(name for name, beat in beats.items() if model in beat.models and prefix in beat.warm):
            if has_room(model, name, beats, sent):
                return Lane(name, f"{name} holds the prefix warm")
            full = full or name
    return Lane("", f"{full} holds the prefix warm but is busy" if full else "no worker holds the prefix warm")


def has_room(model: str, name: str, beats: Mapping[str, Beat], sent: Mapping[str, int]) -> bool:
    """Whether this worker is live, runs the model, has a lane and can begin."""
    load = beats[name].models.get(model) if name in beats else None
    return load is not None and has_lane(load) and load.running + load.queued + sent.get(name, 0) < load.slots


def has_lane(load: Load) -> bool:
    """Whether the worker takes jobs out of a lane of its own: where none may wait for a slot it has none, nor while it
    drains."""
    return load.queue_limit > 0

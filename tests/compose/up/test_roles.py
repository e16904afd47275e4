"""What the roles of one system are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from compose.up.options import Options
from compose.up.ports import Ports
from compose.up.roles import LOG_MAX_BYTES, PARTITIONS, Surroundings, alone, controls, environment, ingresses, nodes

SPREAD = "OKOME_INGRESS_PARTITIONS"
NAMES = (*alone(1, {}), SPREAD)


def told(options: Options, given: Mapping[str, str]) -> Mapping[str, str]:
    """What each role is told of it, by the name of the setting."""
    around = Surroundings("nats://x", "", "key", environment(options, given))
    with Ports() as ports:
        (okome,) = controls(options, ports, around)
        node, *_ = nodes(options, ports, around)
        (ingress,) = ingresses(replace(options, ingresses=1), 0, ports, around)
    both = {**okome.env, **node.env, **ingress.env}
    return {name: both[name] for name in NAMES if name in both}


def test_one_nats_server_gets_few_and_large_logs() -> None:
    """As many as the nodes need; what a node keeps of all of them is as much."""
    assert told(Options(nodes=1), {}) == {
        PARTITIONS: "2",
        LOG_MAX_BYTES: str(1024**3),
        "OKOME_NODE_PARTITION_BYTES": str(64 * 1024**2),
        "OKOME_NODE_WARM_FRAMES": "8000",
        "OKOME_NODE_PAGE_READERS": "16",
        SPREAD: "2",
    }
    assert told(Options(nodes=3), {}) == {
        PARTITIONS: "6",
        LOG_MAX_BYTES: str(1024**3),
        "OKOME_NODE_PARTITION_BYTES": str(128 * 1024**2 // 6),
        "OKOME_NODE_WARM_FRAMES": "2666",
        "OKOME_NODE_PAGE_READERS": "5",
        SPREAD: "6",
    }


def test_a_node_may_be_told_otherwise_all_the_same() -> None:
    assert told(Options(nodes=1), {"OKOME_NODE_WARM_FRAMES": "7"})["OKOME_NODE_WARM_FRAMES"] == "7"


def test_one_nats_server_takes_batches_and_nobody_else_unless_told() -> None:
    """It syncs each write; three have one another."""
    name = "OKOME_CONTROL_LOG_BATCHES"
    assert environment(Options(), {}).get(name) == "true"
    assert environment(Options(), {name: "false"}).get(name) == "false"
    assert environment(Options(nats=3), {}).get(name) is None
    assert environment(Options(nats_url="nats://theirs"), {}).get(name) is None


@pytest.mark.parametrize("options", [Options(nats=3), Options(nats_url="nats://theirs")])
def test_several_servers_and_those_of_others_get_as_many_as_okome_makes_by_itself(options: Options) -> None:
    assert told(options, {}) == {}


@pytest.mark.parametrize("name", [PARTITIONS, LOG_MAX_BYTES])
def test_whoever_names_one_of_both_names_the_logs(name: str) -> None:
    said = {name: "20000000"}
    assert told(Options(), said) == {**said, **({SPREAD: said[PARTITIONS]} if PARTITIONS in said else {})}


def test_an_ingress_spreads_what_okome_makes_unless_it_is_told_otherwise() -> None:
    assert told(Options(nats=3), {PARTITIONS: "12"}) == {PARTITIONS: "12", SPREAD: "12"}
    assert told(Options(nats=3), {PARTITIONS: "12", SPREAD: "40"}) == {PARTITIONS: "12", SPREAD: "40"}

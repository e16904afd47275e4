"""What the roles of one system are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from compose.up.options import Options
from compose.up.ports import Ports
from compose.up.roles import ALONE, Surroundings, controls, environment, ingresses

MADE, SPREAD = "OKOME_CONTROL_PARTITIONS", "OKOME_INGRESS_PARTITIONS"


def told(options: Options, given: Mapping[str, str]) -> Mapping[str, str]:
    """What each role is told of it, by the name of the setting."""
    around = Surroundings("nats://x", "", "key", environment(options, given))
    with Ports() as ports:
        (okome,) = controls(options, ports, around)
        (ingress,) = ingresses(replace(options, ingresses=1), 0, ports, around)
    both = {**okome.env, **ingress.env}
    return {name: both[name] for name in (*ALONE, SPREAD) if name in both}


def test_one_nats_server_gets_few_and_large_logs() -> None:
    assert told(Options(), {}) == {**ALONE, SPREAD: ALONE[MADE]}


@pytest.mark.parametrize("options", [Options(nats=3), Options(nats_url="nats://theirs")])
def test_several_servers_and_those_of_others_get_as_many_as_okome_makes_by_itself(options: Options) -> None:
    assert told(options, {}) == {}


@pytest.mark.parametrize("name", ALONE)
def test_whoever_names_one_of_both_names_the_logs(name: str) -> None:
    said = {name: "20000000"}
    assert told(Options(), said) == {**said, **({SPREAD: said[MADE]} if MADE in said else {})}


def test_an_ingress_spreads_what_okome_makes_unless_it_is_told_otherwise() -> None:
    assert told(Options(nats=3), {MADE: "12"}) == {MADE: "12", SPREAD: "12"}
    assert told(Options(nats=3), {MADE: "12", SPREAD: "40"}) == {MADE: "12", SPREAD: "40"}

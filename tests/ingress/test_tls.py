"""TLS at the edge, with a throw-away authority."""

from __future__ import annotations

import asyncio
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.bus.errors import SettingsInvalid
from broker.bus.settings import load
from ingress.settings import IngressSettings
from ingress.tls import make_ca
from tests.ingress.conftest import DEADLINE, Raw, opened
from tests.ingress.fake_node import SID, Log

Make = Callable[..., Any]


async def secure(port: int, ca: Path, host: str) -> Raw:
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2", "http/1.1"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
    opened.append(writer)
    return Raw(reader, writer)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_https_by_a_throw_away_authority(node: Make, ingress: Make, log: Log, tmp_path: Path, host: str) -> None:
    a = await node("node-a")
    made = make_ca(tmp_path / "tls")
    relay = await ingress(a, tls_cert=made.cert, tls_key=made.key)
    raw = await secure(relay.port, made.ca, host)
    assert raw.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    raw.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await raw.answer()).status == 200
    log.tokens(0, 3)
    raw.send(b"GET /v1/sessions/%b/events?until=done HTTP/1.1\r\nhost: x\r\n\r\n" % SID.encode())
    answer = await raw.answer()
    assert answer.body.count(b"event: token") == 3
    raw.send(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (await raw.answer()).status == 200
    assert await raw.closed()


async def test_plain_http_to_the_tls_port_disturbs_nobody(node: Make, ingress: Make, tmp_path: Path) -> None:
    made = make_ca(tmp_path / "tls")
    relay = await ingress(await node("node-a"), tls_cert=made.cert, tls_key=made.key)
    plain = await Raw.open(relay.port)
    plain.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(DEADLINE):
        assert b"HTTP" not in await plain.reader.read()
    raw = await secure(relay.port, made.ca, "localhost")
    raw.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await raw.answer()).status == 200


def test_the_authority_is_kept_and_its_key_never_written(tmp_path: Path) -> None:
    first = make_ca(tmp_path / "tls")
    before = first.ca.read_bytes()
    assert make_ca(tmp_path / "tls").ca.read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "tls").iterdir()) == ["ca.pem", "server.key", "server.pem"]
    assert stat.S_IMODE(first.key.stat().st_mode) == 0o600


def test_certificate_and_key_belong_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="belong together"):
        load(IngressSettings, tls_cert=tmp_path / "a.pem")

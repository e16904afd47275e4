"""TLS at the edge, with a throw-away authority."""

from __future__ import annotations

import asyncio
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from broker.bus.errors import SettingsInvalid
from broker.bus.settings import load
from ingress.settings import IngressSettings
from ingress.tls import make_ca, server_context
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


def test_a_certificate_for_another_host_is_made_anew_and_what_names_this_machine_is_kept(tmp_path: Path) -> None:
    kept = make_ca(tmp_path, "box.lan").ca.read_bytes()
    for host in ("box.lan", "127.0.0.1", "localhost", "::1", "0.0.0.0", "::", ""):
        assert make_ca(tmp_path, host).ca.read_bytes() == kept, host
    for host in ("192.0.2.7", "2001:db8::1", "other.lan"):
        made = make_ca(tmp_path, host)
        assert made.ca.read_bytes() != kept
        kept = made.ca.read_bytes()
        assert make_ca(tmp_path, host).ca.read_bytes() == kept, host


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server.key"])
@pytest.mark.parametrize("found", [b"", b"nonsense", None], ids=["empty", "nonsense", "another's"])
def test_what_was_half_written_is_made_anew_of_the_same_modes(tmp_path: Path, name: str, found: bytes | None) -> None:
    made = make_ca(tmp_path / "a")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (made.ca, made.cert, made.key)]
    assert modes[2] == 0o600
    make_ca(tmp_path / "b")
    wrong = (tmp_path / "b" / name).read_bytes() if found is None else found
    (tmp_path / "a" / name).write_bytes(wrong)
    made = make_ca(tmp_path / "a")
    assert (tmp_path / "a" / name).read_bytes() != wrong
    server_context(made.cert, made.key)
    ca = made.ca.read_bytes()
    assert make_ca(tmp_path / "a").ca.read_bytes() == ca
    assert modes == [stat.S_IMODE(path.stat().st_mode) for path in (made.ca, made.cert, made.key)]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["ca.pem", "server.key", "server.pem"]


def test_a_certificate_whose_time_is_over_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = datetime.now(UTC) - timedelta(days=1)
    issue = trustme.CA.issue_cert
    with monkeypatch.context() as earlier:
        earlier.setattr(trustme.CA, "issue_cert", lambda ca, *names: issue(ca, *names, not_after=over))
        old = make_ca(tmp_path).cert.read_bytes()
    new = make_ca(tmp_path).cert.read_bytes()
    assert new != old
    assert make_ca(tmp_path).cert.read_bytes() == new


def test_certificate_and_key_belong_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="belong together"):
        load(IngressSettings, tls_cert=make_ca(tmp_path).cert)


@pytest.mark.parametrize(
    ("cert", "key", "name", "why"),
    [
        ("none.pem", "server.key", "CERT", "No such file"),
        ("junk.pem", "server.key", "CERT", "no certificate"),
        ("server.pem", "none.key", "KEY", "No such file"),
        ("server.pem", "junk.pem", "KEY", "no private key"),
        ("server.pem", "other/server.key", "KEY", "of that certificate"),
        ("server.pem", "locked.key", "KEY", "pass phrase"),
    ],
)
def test_files_that_cannot_serve_are_wrong_settings_named_with_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], cert: str, key: str, name: str, why: str
) -> None:
    """Nothing is asked at the terminal: a role has none."""
    ours, _ = make_ca(tmp_path), make_ca(tmp_path / "other")
    (tmp_path / "junk.pem").write_text("no PEM")
    encrypted = (Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    private = load_pem_private_key(ours.key.read_bytes(), None)
    (tmp_path / "locked.key").write_bytes(private.private_bytes(*encrypted))
    with pytest.raises(SettingsInvalid, match=why) as caught:
        load(IngressSettings, tls_cert=tmp_path / cert, tls_key=tmp_path / key)
    assert set(caught.value.problems) == {f"OKOME_INGRESS_TLS_{name}"}
    assert str(tmp_path / (cert if name == "CERT" else key)) in str(caught.value)
    assert capfd.readouterr().err == ""

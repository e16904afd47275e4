"""Flags that contradict each other are all named, before anything starts."""

from pathlib import Path

import pytest

from compose.up.options import Options, OptionsInvalid, reachable


def test_the_defaults_are_those_of_the_documentation() -> None:
    options = Options()
    assert (options.host, options.port, options.engine) == ("127.0.0.1", 8080, "smollm2")
    assert (options.nodes, options.workers, options.ingresses, options.controls, options.nats) == (2, 1, 1, 1, 1)
    assert options.restart
    assert options.data is None
    assert not options.secure


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(OptionsInvalid) as refused:
        Options(nats=2, nodes=0, port=70000, tls_cert=tmp_path / "none.pem", cors_origins=("example.com",))
    for flag in ("--nats", "--nodes", "--port", "--tls-key", "none.pem", "--cors-origin"):
        assert flag in str(refused.value)


def test_a_certificate_and_a_throw_away_one_exclude_each_other(tmp_path: Path) -> None:
    file = tmp_path / "c.pem"
    file.write_text("")
    with pytest.raises(OptionsInvalid, match="--tls makes"):
        Options(tls=True, tls_cert=file, tls_key=file)


@pytest.mark.parametrize(
    ("host", "written"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("box.lan", "box.lan")],
)
def test_a_bind_address_becomes_one_that_can_be_opened(host: str, written: str) -> None:
    assert reachable(host) == written


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_only_a_loopback_bind_is_one(host: str, loopback: bool) -> None:
    assert Options(host=host).loopback is loopback


@pytest.mark.parametrize("origin", ["https://a.example", "http://localhost:3000"])
def test_an_origin_is_scheme_and_authority(origin: str) -> None:
    assert Options(cors_origins=(origin,)).cors_origins == (origin,)


@pytest.mark.parametrize("url", [" ", ",", "nats://a:b", "http://a"])
def test_what_names_no_nats_server_is_refused(url: str) -> None:
    with pytest.raises(OptionsInvalid, match=r"--nats-url: .*server"):
        Options(nats_url=url)

"""Which system a command talks to, and what it gets to know of it."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from compose.cli.outcome import USAGE, CommandFailed
from compose.cli.target import Target
from compose.up import statefile
from compose.up.datadir import DataDir
from ingress.tls import make_ca

FIRST, SECOND = "http://127.0.0.1:1", "http://127.0.0.1:2"
Start = Callable[[str], DataDir]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """As an `okome up` leaves it: somebody lives in the directory, and its state file says where."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with ExitStack() as stack:

        def one(url: str) -> DataDir:
            data = stack.enter_context(DataDir(tmp_path / url.rpartition(":")[2]))
            port = url.rpartition(":")[2]
            told = {
                "url": url,
                "api_key": f"ok_{port}",
                "nats_url": f"nats://x:{port}",
                "data": str(data.path),
                "processes": [{"role": "ingress", "id": "ingress-1"}],
            }
            statefile.write(statefile.new(), told)
            return data

        yield one


def find(url: str | None = None, **env: str) -> Target:
    return Target.find(url, environment=env)


def test_a_single_system_is_found_without_a_word(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start(FIRST)
    assert (find().url, find().api_key, find().nats_url) == (FIRST, "ok_1", "nats://x:1")
    assert capsys.readouterr().err == ""


def test_of_several_it_is_the_last_and_that_is_said_unless_one_was_chosen(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start(FIRST)
    start(SECOND)
    assert find().api_key == "ok_2"
    assert f"using {SECOND}, started last; --url chooses another: {FIRST}" in capsys.readouterr().err
    assert find(FIRST).api_key == find(OKOME_URL=FIRST + "/").api_key == "ok_1"
    assert capsys.readouterr().err == ""


def test_one_that_ended_without_a_word_does_not_count_and_is_forgotten(start: Start) -> None:
    start(FIRST)
    start(SECOND).close()
    assert find().url == FIRST
    statefile.sweep()
    assert len(list(statefile.folder().iterdir())) == 1


def test_where_somebody_starts_again_the_one_that_was_killed_does_not_count(start: Start) -> None:
    start(FIRST)
    with start(SECOND) as killed:
        pass
    with DataDir(killed.path) as again:
        assert find().url == SECOND
        statefile.forget(again.path)
        assert find().url == FIRST


def test_looking_for_a_system_keeps_nobody_from_starting_there(start: Start, tmp_path: Path) -> None:
    start(FIRST).close()
    assert statefile.running() == []
    start(FIRST)
    assert find().url == FIRST


def test_the_key_of_a_system_is_not_sent_to_another_one(start: Start) -> None:
    start(FIRST)
    with pytest.raises(CommandFailed, match=f"no API key for {SECOND}"):
        find(SECOND).client()


@pytest.mark.parametrize("url", [FIRST, "http://localhost:1", "http://[::1]:1", "https://127.0.0.1:1"])
async def test_a_proxy_is_never_asked_for_this_machine(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with find(url, OKOME_API_KEY="ok_secret").client() as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("/v1/models")
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


async def test_a_proxy_is_not_asked_for_a_system_that_runs_here_and_is_for_any_other(start: Start) -> None:
    start("http://box.lan:1")
    async with find().client() as here, find("http://far:8080", OKOME_API_KEY="ok_far").client() as far:
        assert not here.trust_env
        assert far.trust_env


def test_whom_the_environment_trusts_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(make_ca(tmp_path).ca))
    trusted = find("https://localhost:1", OKOME_API_KEY="ok_a").trusted()
    assert isinstance(trusted, ssl.SSLContext)
    assert trusted.cert_store_stats()["x509_ca"] == 1


@pytest.mark.parametrize("holds", [None, "", "no PEM"])
def test_an_authority_that_is_none_is_said_before_anybody_is_asked(tmp_path: Path, holds: str | None) -> None:
    """One that is not there was nobody's before: the certificate was then checked against others."""
    file = tmp_path / "ca.pem"
    if holds is not None:
        file.write_text(holds)
    with pytest.raises(CommandFailed, match=f"OKOME_CA {file}: ") as refused:
        find("https://localhost:1", OKOME_CA=str(file))
    assert refused.value.code == USAGE
    assert find("https://localhost:1", OKOME_CA=str(make_ca(tmp_path).ca)).ca == file


def test_certificates_that_are_not_where_the_environment_says_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with pytest.raises(CommandFailed, match="SSL_CERT_FILE"):
        find("https://localhost:1", OKOME_API_KEY="ok_a").trusted()


@pytest.mark.parametrize("key", ["ok_ümläut", "ok_a\nok_b"])
def test_a_key_that_no_header_can_carry_is_said_and_not_shown(key: str) -> None:
    with pytest.raises(CommandFailed, match="OKOME_API_KEY") as refused:
        find(FIRST, OKOME_API_KEY=key)
    assert refused.value.code == USAGE
    assert "ok_" not in str(refused.value)
    assert find(FIRST, OKOME_API_KEY="ok_a\n").api_key == "ok_a"


def test_a_flag_chooses_the_nats_servers_too(start: Start) -> None:
    start(FIRST)
    start(SECOND)
    assert find(FIRST).bus() == "nats://x:1"
    assert find(FIRST, OKOME_NATS_URL="nats://elsewhere").bus() == "nats://x:1"
    assert find(OKOME_NATS_URL="nats://elsewhere").bus() == "nats://elsewhere"
    with pytest.raises(CommandFailed, match=r"http://far:8080.*OKOME_NATS_URL"):
        find("http://far:8080").bus()


def test_who_has_no_home_finds_no_system_and_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert find(OKOME_NATS_URL="nats://elsewhere").bus() == "nats://elsewhere"
    assert statefile.new().parent == statefile.folder()

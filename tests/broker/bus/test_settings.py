"""Settings: read from the environment, every mistake named at once, and no secret in what is printed."""

from __future__ import annotations

import pytest
from pydantic_settings import SettingsConfigDict

from broker.bus.errors import SettingsInvalid
from broker.bus.settings import RoleSettings, load, nats_servers


class Settings(RoleSettings):
    model_config = SettingsConfigDict(env_prefix="OKOME_SAMPLE_")

    grace: float = 30.0
    origins: tuple[str, ...] = ()


def test_a_setting_is_an_environment_variable_of_its_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKOME_SAMPLE_GRACE", "2.5")
    monkeypatch.setenv("OKOME_SAMPLE_ORIGINS", '["http://a"]')
    monkeypatch.setenv("OKOME_OTHER_GRACE", "9")
    settings = load(Settings)
    assert (settings.grace, settings.origins, settings.port) == (2.5, ("http://a",), 0)


def test_all_mistakes_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"PORT": "70000", "ID": "a.b", "GRACE": "soon", "LOG_LEVEL": "loud", "DRAIN_TIMEOUT": "0"}
    for name, value in wrong.items():
        monkeypatch.setenv(f"OKOME_SAMPLE_{name}", value)
    with pytest.raises(SettingsInvalid) as caught:
        load(Settings)
    assert set(caught.value.problems) == {f"OKOME_SAMPLE_{name}" for name in wrong}


def test_a_list_that_is_not_json_is_a_wrong_setting_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydantic-settings raises another error for it, before anything is validated."""
    monkeypatch.setenv("OKOME_SAMPLE_ORIGINS", "http://a")
    with pytest.raises(SettingsInvalid, match="origins"):
        load(Settings)


def test_they_can_be_read_from_the_environment_that_a_role_will_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKOME_SAMPLE_GRACE", "soon")
    told = load(Settings, environment={"OKOME_SAMPLE_PORT": "7", "OKOME_SAMPLE_ORIGINS": '["http://a"]'})
    assert (told.grace, told.port, told.origins) == (30.0, 7, ("http://a",))
    with pytest.raises(SettingsInvalid) as caught:
        load(Settings, environment={"OKOME_SAMPLE_PORT": "x", "OKOME_SAMPLE_ID": "a b"})
    assert set(caught.value.problems) == {"OKOME_SAMPLE_PORT", "OKOME_SAMPLE_ID"}


def test_settings_are_read_once_and_hide_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKOME_SAMPLE_NATS_PASSWORD", "hunter2")
    settings = load(Settings)
    assert "hunter2" not in repr(settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("nats://a:1", ("nats://a:1",)),
        ("a", ("nats://a:4222",)),
        ("a:1, tls://[::1] ,", ("nats://a:1", "tls://[::1]:4222")),
        ("nats://a:", ("nats://a:4222",)),
        ("wss://a/nats", ("wss://a/nats",)),
        ("nats://me:secret@a,b", ("nats://a:4222", "nats://b:4222")),
    ],
)
def test_nats_servers_are_named_with_or_without_scheme_and_port(given: str, named: tuple[str, ...]) -> None:
    assert nats_servers(given).addresses == named
    assert load(Settings, nats_url=given).nats_url == given


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nats://a", {}),
        ("nats://me:s%40cr%3At%2F@a,b", {"user": "me", "password": "s@cr:t/"}),
        ("nats://me:@a", {"user": "me", "password": ""}),
        ("t%40ken@a", {"token": "t@ken"}),
    ],
)
def test_who_one_is_at_nats_is_decoded_and_not_shown(given: str, told: dict[str, str]) -> None:
    servers = nats_servers(given)
    assert servers.credentials == told
    assert not any(word in repr(servers) for word in told.values() if word)


WRONG = [
    "",
    " ",
    ",",
    "http://a",
    "nonsense:x",
    "nats://",
    "nats://:1",
    "nats://a b",
    "a:0",
    "a:65536",
    "a:b",
    "nats://[::1",
]


@pytest.mark.parametrize("urls", [*WRONG, "nats://a:1,nats://a:b", "nats://me:open/sesame@a", "a:open@a,b:open@b"])
def test_what_names_no_nats_server_is_a_wrong_setting_and_said_without_its_password(urls: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"server") as caught:
        load(Settings, environment={"OKOME_SAMPLE_NATS_URL": urls})
    assert set(caught.value.problems) == {"OKOME_SAMPLE_NATS_URL"}
    assert "open" not in str(caught.value)

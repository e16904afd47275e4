"""Settings: every one is an environment variable `OKOME_<ROLE>_<NAME>`, read once, all mistakes reported together.

A role subclasses `RoleSettings` with its own prefix. Units are in the names or the comments: seconds unless said.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from broker.bus.errors import SettingsInvalid

SCHEMES = ("nats", "tls", "ws", "wss")
PORT = 4222


class RoleSettings(BaseSettings):
    """What every role is told."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    id: str = Field("", pattern=r"^[A-Za-z0-9_-]{0,64}$", description="name on the bus; a random one if empty")
    host: str = Field("127.0.0.1", description="address that the role listens on")
    port: int = Field(0, ge=0, le=65535, description="port that the role listens on; 0 is any free one")
    nats_url: str = Field("nats://127.0.0.1:4222", description="NATS servers, separated by commas")
    nats_user: str = ""
    nats_password: SecretStr = SecretStr("")
    redis_url: str = Field("", description="Redis or Valkey; empty: no cache, limits per process")
    log_level: str = Field("info", pattern=r"^(debug|info|warning|error)$")
    drain_timeout: float = Field(10.0, gt=0, le=900)
    clock_offset: float = Field(
        0.0, ge=-86400, le=86400, description="added to this role's wall clock: for fault tests"
    )
    parent_pid: int = Field(0, ge=0, description="drain and end when this process is gone; 0: never")

    @field_validator("id")
    @classmethod
    def _not_reserved(cls, id: str) -> str:
        if id in ("any", "all"):
            raise ValueError("`any` and `all` are everybody's names on the bus")
        return id

    @field_validator("nats_url")
    @classmethod
    def _names_servers(cls, urls: str) -> str:
        nats_servers(urls)
        return urls


@dataclass(frozen=True)
class NatsServers:
    """What a `nats_url` names: addresses with scheme, host and, except for WebSockets, port, and who one is there, in
    the client's own words: user and password, or a token, or nothing."""

    addresses: tuple[str, ...]
    credentials: Mapping[str, str] = field(repr=False)


def nats_servers(urls: str) -> NatsServers:
    """Raises ValueError with a sentence that quotes nothing: what cannot be read may be part of a password."""
    named = [_server(part.strip()) for part in urls.split(",") if part.strip()]
    if not named:
        raise ValueError("it names no server")
    told = [credentials for _, credentials in named if credentials]
    if any(credentials != told[0] for credentials in told):
        raise ValueError("the servers are one system's: they have the same user and password")
    return NatsServers(tuple(address for address, _ in named), told[0] if told else {})


def _server(url: str) -> tuple[str, dict[str, str]]:
    """One of them, and who one is there. nats-py takes the same, and ends without a reason, or waits, for what is none;
    it decodes no password."""
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        host, port = (parts.hostname or "").encode("idna"), parts.port  # as whoever looks it up does
    except ValueError:
        raise ValueError("a server is nats://host:port, its port a number from 1 to 65535") from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"the scheme of a server is one of {', '.join(SCHEMES)}")
    if not host or len(host.split()) != 1:
        raise ValueError("a server has no host")
    if port == 0:
        raise ValueError("the port of a server is a number from 1 to 65535")
    where = parts.netloc.rpartition("@")[2]
    if port is None and parts.scheme in ("nats", "tls"):
        where = f"{where.removesuffix(':')}:{PORT}"
    credentials = {}
    if parts.password is not None:
        credentials = {"user": unquote(parts.username or ""), "password": unquote(parts.password)}
    elif parts.username:
        credentials = {"token": unquote(parts.username)}
    return parts._replace(netloc=where).geturl(), credentials


Settings = TypeVar("Settings", bound=RoleSettings)


def load(kind: type[Settings], *, environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read a role's settings from the environment, this process's or the one that it will have; raises SettingsInvalid
    with every mistake at once."""
    prefix = str(kind.model_config.get("env_prefix", ""))
    try:
        return (kind if environment is None else _told(kind, environment))(**overrides)
    except ValidationError as error:
        problems = {
            (prefix + "_".join(str(part) for part in item["loc"])).upper(): item["msg"] for item in error.errors()
        }
        raise SettingsInvalid(problems) from error
    except SettingsError as error:  # a list or mapping that is not JSON: found before anything is validated
        raise SettingsInvalid({prefix.upper() + "*": f"{error} ({error.__cause__})"}) from error


def _told(kind: type[Settings], environment: Mapping[str, str]) -> type[Settings]:
    """The same settings, read from this environment and no other."""

    class Told(kind):  # type: ignore[valid-type,misc]
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            assert isinstance(env_settings, EnvSettingsSource)
            env_settings.env_vars = {name.lower(): value for name, value in environment.items()}
            return init_settings, env_settings

    return Told


def misspelt(kind: type[RoleSettings], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that begin like this role's and are none of its settings, with the nearest one: nobody reads them."""
    prefix = str(kind.model_config.get("env_prefix", "")).upper()
    known = [prefix + field.upper() for field in kind.model_fields]
    found = {}
    for name in environment:
        if name.upper().startswith(prefix) and name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1)
            found[name] = "is no setting" + (f"; the nearest is {nearest[0]}" if nearest else "")
    return found

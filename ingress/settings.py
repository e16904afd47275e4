"""Settings of the ingress: environment variables `OKOME_INGRESS_<NAME>`. Seconds and bytes unless said."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from limits import parse
from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from broker.bus import cors
from broker.bus.settings import RoleSettings
from broker.bus.subjects import MAX_PARTITIONS
from ingress.headers import networks
from ingress.tls import check_certificate, check_key


class IngressSettings(RoleSettings):
    model_config = SettingsConfigDict(env_prefix="OKOME_INGRESS_", extra="ignore", frozen=True)

    shared_host: str = Field("", description="address of the shared port; empty: `host`")
    shared_port: int = Field(
        -1, ge=-1, le=65535, description="port listened on together with other ingresses (SO_REUSEPORT); -1: none"
    )
    partitions: int = Field(32, ge=1, le=MAX_PARTITIONS, description="partitions that placement spreads evenly")
    tls_cert: Path | None = Field(None, description="certificate chain, PEM; with tls_key: HTTPS")
    tls_key: Path | None = Field(None, description="private key, PEM")
    trusted_proxies: str = Field("", description="addresses and networks whose X-Forwarded-* are believed")
    cors_origins: str = Field("", description="origins, separated by commas, that may read this ingress's own answers")

    max_connections: int = Field(10_000, ge=1)
    header_limit: int = Field(32 * 1024, ge=1024, description="request line and header fields together")
    header_count_limit: int = Field(100, ge=8)
    body_limit: int = Field(1024 * 1024, ge=1024)
    body_memory: int = Field(
        128 * 1024 * 1024, ge=1024, description="of all bodies together, from their first byte until they are answered"
    )
    header_timeout: float = Field(
        10.0, gt=0, description="from a request's first byte (or the connection) to its head's end"
    )
    body_timeout: float = Field(30.0, gt=0, description="from the head's end to the body's end")
    idle_timeout: float = Field(75.0, gt=0, description="between two requests of one connection")
    response_timeout: float = Field(900.0, gt=0, description="until a node's answer begins; `?wait=` needs long ones")
    write_high: int = Field(64 * 1024, ge=4096, description="bytes unsent to a client above which its node is not read")

    multiplex: bool = Field(
        True, description="one connection to a node for all its event streams and WebSockets; else one for each"
    )
    connect_timeout: float = Field(1.0, gt=0)
    leg_timeout: float = Field(5.0, gt=0, description="how long a node is looked for before a stream is put off")
    silence_timeout: float = Field(25.0, gt=0, description="a stream without even a heartbeat for so long is moved")
    check_interval: float = Field(0.25, gt=0, description="between two health checks of a node")
    suspect_after: float = Field(0.4, gt=0, description="silence after which a node gets no new streams")
    down_after: float = Field(0.8, gt=0, description="silence after which its streams are moved")

    cut_off_after: float = Field(
        0.5,
        gt=0,
        description="a node that does not hear NATS for so long while another does: its streams are moved",
    )

    key_limit: str = Field("12000/minute", description="requests per API key, token or login; empty: no limit")
    session_limit: str = Field("600/minute", description="requests per session, of one caller; empty: no limit")
    ip_limit: str = Field("24000/minute", description="requests per client address, IPv6 by /64; empty: no limit")

    @property
    def origins(self) -> frozenset[str]:
        return cors.origins(self.cors_origins)

    @field_validator("key_limit", "session_limit", "ip_limit")
    @classmethod
    def _is_rate(cls, text: str) -> str:
        if text:
            parse(text)
        return text

    @field_validator("trusted_proxies")
    @classmethod
    def _is_networks(cls, text: str) -> str:
        networks(text)
        return text

    @field_validator("tls_cert")
    @classmethod
    def _is_certificate(cls, cert: Path | None) -> Path | None:
        if cert is not None:
            check_certificate(cert)
        return cert

    @field_validator("tls_key")
    @classmethod
    def _is_its_key(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        cert = info.data.get("tls_cert")
        if cert is not None and key is not None:
            check_key(cert, key)
        return key

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        if self.body_memory < self.body_limit:
            raise ValueError("body_limit <= body_memory")
        if not self.check_interval < self.suspect_after < self.down_after:
            raise ValueError("check_interval < suspect_after < down_after")
        return self

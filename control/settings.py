"""OKOME's settings: environment variables `OKOME_CONTROL_<NAME>`. Times in seconds, sizes in bytes."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from broker.bus.settings import RoleSettings
from broker.bus.subjects import MAX_PARTITIONS

HOUR = 3600.0
MIB = 1024 * 1024


class ControlSettings(RoleSettings):
    """What OKOME is told."""

    model_config = SettingsConfigDict(env_prefix="OKOME_CONTROL_", extra="ignore", frozen=True)

    partitions: int = Field(32, ge=1, le=MAX_PARTITIONS, description="session logs are spread over so many streams")
    replicas: int = Field(1, ge=1, le=5, description="copies of every stream and bucket")
    log_batches: bool = Field(
        False, description="frames of many answers are one write: where a server that is alone syncs each"
    )
    log_max_age: float = Field(24 * HOUR, ge=60, description="a frame lives so long")
    log_max_bytes: int = Field(128 * MIB, ge=MIB, description="of one partition; full means no admission")
    jobs_max_bytes: int = Field(256 * MIB, ge=MIB, description="of all waiting jobs")
    token_life: float = Field(24 * HOUR, ge=1, le=36 * HOUR, description="of session and login tokens")
    ticket_life: float = Field(60, ge=1, le=300, description="of a one-use ticket for a session")
    login_ticket_life: float = Field(300, ge=1, le=300, description="of the ticket in the page's address")
    idempotency_life: float = Field(24 * HOUR, ge=120, description="a repeat under its key is answered so long")
    deleted_life: int = Field(24 * 3600, ge=60, description="OKOMEs that were away so long miss no deletion")
    job_wait: float = Field(300, ge=0.1, description="a generation that no worker takes expires after it")
    default_model: str = Field("", description="where neither request nor session names one; empty: the first real one")
    api_key: SecretStr = Field(SecretStr(""), description="the first API key; only its hash is kept")
    store_boot: str = Field("", description="which start of NATS's machine this is; another one renames every log")
    reconcile_interval: float = Field(5, gt=0, le=60, description="between two looks at streams and floors")
    sweep_interval: float = Field(0.5, gt=0, le=60, description="between two looks at open generations and lanes")

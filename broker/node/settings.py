"""What a stream node is told: `OKOME_NODE_*`. Seconds and bytes unless said."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from broker.bus import cors
from broker.bus.settings import RoleSettings


class NodeSettings(RoleSettings):
    """Defaults are those of api.md; `okome doctor` prints the effective ones."""

    model_config = SettingsConfigDict(env_prefix="OKOME_NODE_", extra="ignore", frozen=True)

    shared_host: str = Field("", description="address of the shared port; empty: `host`")
    shared_port: int = Field(
        -1, ge=-1, le=65535, description="port listened on together with other nodes (SO_REUSEPORT); -1: none"
    )
    public_url: str = Field("", description="how ingresses reach this node; http://host:port if empty")
    cors_origins: str = Field("", description="allowed cross origins, separated by commas")
    trust_loopback: bool = Field(True, description="a browser on this machine's loopback may log in without a key")

    ring_frames: int = Field(80, ge=16, description="frames of a session kept in memory")
    partition_bytes: int = Field(16 * 1024 * 1024, ge=65536, description="memory for the rings of one partition")
    warm_frames: int = Field(2000, ge=0, description="a tail starts this many frames before the partition's end")
    tail_credit: int = Field(1024, ge=16, description="frames on their way to a tail at once")
    tail_idle_timeout: float = Field(60.0, gt=0, description="a tail that nobody reads is stopped after this")
    page_readers: int = Field(4, ge=1, description="pages read at once from one partition's log")

    max_subscribers: int = Field(20_000, ge=1)
    heartbeat_interval: float = Field(10.0, gt=0, description="silence after which viewers get `: hb`")
    pacer_window: float = Field(0.08, ge=0, le=0.1, description="a live token is held at most so long; 0: no pacing")
    attach_timeout: float = Field(5.0, gt=0, description="until the log must have answered a new viewer")
    auth_timeout: float = Field(5.0, gt=0, description="for the first message of a WebSocket without credentials")
    body_limit: int = Field(1024 * 1024, ge=1024)
    body_timeout: float = Field(30.0, gt=0, description="for the whole body of a request")

    @property
    def shared(self) -> tuple[str, int] | None:
        """Address and port that are shared, if there are any."""
        return (self.shared_host or self.host, self.shared_port) if self.shared_port >= 0 else None

    @property
    def origins(self) -> frozenset[str]:
        return cors.origins(self.cors_origins)

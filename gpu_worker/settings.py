"""A worker's settings: environment variables `OKOME_WORKER_<NAME>`. Seconds unless said."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from broker.bus.settings import RoleSettings
from broker.bus.subjects import REPLICA_PREFIX
from gpu_worker.engines import EngineSettings
from gpu_worker.engines.engine import Resume


class WorkerSettings(RoleSettings):
    """What a worker is told. The model `scripted` is served beside the chosen engine."""

    model_config = SettingsConfigDict(env_prefix="OKOME_WORKER_", extra="ignore", frozen=True)

    engine: str = Field("smollm2", description="smollm2 · scripted · openai")
    threads: int = Field(1, ge=1, le=1024, description="threads of the model's computation")
    slots: int = Field(4, ge=1, le=65536, description="generations that the engine decodes at once")
    queue_limit: int = Field(16, ge=0, le=65536, description="so many more are admitted, and wait in the queue")
    context_length: int = Field(2048, ge=128, description="tokens of prompt and answer per slot")
    scripted_slots: int = Field(10_000, ge=1, le=100_000)
    engine_start_timeout: float = Field(60.0, gt=0)
    openai_url: str = Field("", description="of the server that engine `openai` asks, with its /v1")
    openai_key: SecretStr = SecretStr("")
    openai_models: str = Field("", description="those of its models to serve, separated by commas; empty: all")
    openai_resume: Resume = Field("continue", description="how it goes on with an answer that has begun")
    openai_extra: dict[str, Any] = Field({}, description="JSON: fields of every request to it")
    answer_limit: int = Field(
        16 * 1024 * 1024,
        ge=1024,
        description="bytes of an answer's text, reasoning included: it is cut there",
    )
    max_pause: float = Field(20.0, gt=0, description="longest time that lagging viewers pause an engine")
    grace: float = Field(30.0, gt=0, description="silence of the nodes that had viewers before on_disconnect=cancel")
    cancel_interval: float = Field(5.0, gt=0, description="between two looks for a cancel whose nudge was lost")
    frame_interval: float = Field(
        0.0, ge=0, le=1, description="between two frames of one answer's tokens, about: fewer, larger, later"
    )
    collect_above: int = Field(
        12_000, ge=0, description="tokens a second of all answers above which they collect, up to 0.2 s; 0: never"
    )
    batch_from: int = Field(
        16, ge=2, le=500, description="frames that wait for a log go as one batch, where it takes batches"
    )
    lost_timeout: float = Field(60.0, gt=0, description="without an answer from the log before an attempt is given up")

    @field_validator("id")
    @classmethod
    def _no_replica(cls, id: str) -> str:
        if id.startswith(REPLICA_PREFIX):
            raise ValueError(f"names that begin with `{REPLICA_PREFIX}` are those of OKOME's replicas")
        return id

    def for_engine(self) -> EngineSettings:
        return EngineSettings(
            threads=self.threads,
            slots=self.slots,
            context_length=self.context_length,
            queue_limit=self.queue_limit,
            start_timeout=self.engine_start_timeout,
            scripted_slots=self.scripted_slots,
            openai_url=self.openai_url,
            openai_key=self.openai_key.get_secret_value(),
            openai_models=tuple(one.strip() for one in self.openai_models.split(",") if one.strip()),
            openai_resume=self.openai_resume,
            openai_extra=self.openai_extra,
        )

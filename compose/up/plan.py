"""From flags to parts: which processes, in which order, told what. Chooses ports and places; starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compose.up import roles, servers
from compose.up.datadir import DataDir
from compose.up.options import Options, OptionsInvalid
from compose.up.part import Part
from compose.up.ports import Ports

SPEAK_OPENAI = {"vllm": "http://127.0.0.1:8000/v1", "ollama": "http://127.0.0.1:11434/v1"}
"""Engines with no adapter of their own, and where their servers speak OpenAI's API unless told otherwise."""


class EngineMissing(Exception):
    """The engine cannot run here; the message names what to install or to choose."""


@dataclass(frozen=True)
class Plan:
    """`stages` start one after the other. `ca` is what a client must trust, when the certificate was made here."""

    stages: tuple[tuple[Part, ...], ...]
    url: str
    nats_url: str
    redis_url: str
    ca: Path | None


def make(options: Options, data: DataDir, ports: Ports, api_key: str, environment: Mapping[str, str]) -> Plan:
    """Raises OptionsInvalid (no such engine, or not the number of NATS servers that `data` was started with first),
    EngineMissing, PortBusy, and FileNotFoundError for a missing server."""
    _check_engine(options.engine, environment)
    port = ports.claim(options.host, options.port, shared=True)
    foundation: list[Part] = []
    nats_url, redis_url = options.nats_url, options.redis_url
    if not nats_url:
        parts, nats_url = servers.nats(options.nats, data, ports)
        foundation += parts
    if not redis_url:
        part, redis_url = servers.redis(data, ports)
        foundation.append(part)
    certificate, ca = _certificate(options, data)
    around = roles.Surroundings(nats_url, redis_url, api_key, roles.environment(options, environment), certificate)
    return Plan(
        # OKOME lays streams, buckets and keys before anybody looks for them; from there on nobody waits for anybody.
        stages=tuple(
            tuple(stage)
            for stage in (
                foundation,
                roles.controls(options, ports, around),
                [
                    *roles.nodes(options, ports, around),
                    *roles.workers(options, ports, around),
                    *roles.ingresses(options, port, ports, around),
                ],
            )
            if stage
        ),
        url=roles.public_url(options, port),
        nats_url=nats_url,
        redis_url=redis_url,
        ca=ca,
    )


def _check_engine(name: str, environment: Mapping[str, str]) -> None:
    from gpu_worker.engines import ANNOUNCED, ENGINES, EngineSettings, EngineUnavailable, create

    if name not in (*ENGINES, *ANNOUNCED):
        raise OptionsInvalid(f"--engine {name}: one of {', '.join(ENGINES)}")
    if name in SPEAK_OPENAI:
        raise EngineMissing(
            f"--engine {name} is not built yet; use its server's OpenAI API: --engine openai with "
            f"OKOME_WORKER_OPENAI_URL={SPEAK_OPENAI[name]}"
        )
    try:
        create(name, EngineSettings(openai_url=environment.get("OKOME_WORKER_OPENAI_URL", "")))
    except EngineUnavailable as error:
        raise EngineMissing(str(error)) from error


def _certificate(options: Options, data: DataDir) -> tuple[tuple[Path, Path] | None, Path | None]:
    if options.tls_cert and options.tls_key:
        _check_certificate(options.tls_cert, options.tls_key)
        return (options.tls_cert.resolve(), options.tls_key.resolve()), None
    if not options.tls:
        return None, None
    from ingress.tls import make_ca

    made = make_ca(data.tls, options.host)
    return (made.cert, made.key), made.ca


def _check_certificate(cert: Path, key: Path) -> None:
    from ingress.tls import check_certificate, check_key

    flag = "--tls-cert"
    try:
        check_certificate(cert)
        flag = "--tls-key"
        check_key(cert, key)
    except ValueError as error:
        raise OptionsInvalid(f"{flag} {error}") from error

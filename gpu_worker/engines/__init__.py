"""The engines by name. Each is imported only when asked for, so that a worker needs nothing of an engine it does not
run.
"""

from gpu_worker.engines.engine import (
    Engine,
    EngineFailed,
    EngineSettings,
    EngineUnavailable,
    Enough,
    Finish,
    Message,
    ModelCard,
    Piece,
    Pouring,
    Prefix,
    Prompt,
    Say,
    Tap,
)

ENGINES = ("smollm2", "scripted", "openai")
"""The engines that exist."""

ANNOUNCED = ("vllm", "ollama", "tensorflow")
"""Names the command line knows, not built yet."""


def create(name: str, settings: EngineSettings | None = None) -> Engine:
    """The engine of that name, not started. Raises EngineUnavailable saying what to install or choose."""
    settings = settings or EngineSettings()
    have = ", ".join(ENGINES)
    match name:
        case "scripted":
            from gpu_worker.engines.scripted import ScriptedEngine

            return ScriptedEngine(settings)
        case "smollm2":
            from gpu_worker.engines.smollm2 import SmolLM2Engine

            return SmolLM2Engine(settings)
        case "openai":
            from gpu_worker.engines.openai import OpenAIEngine

            return OpenAIEngine(settings)
        case _ if name in ANNOUNCED:
            raise EngineUnavailable(f"engine {name!r} is not built yet; choose one of: {have}")
        case _:
            raise EngineUnavailable(f"there is no engine {name!r}; choose one of: {have}")


__all__ = [
    "ANNOUNCED",
    "ENGINES",
    "Engine",
    "EngineFailed",
    "EngineSettings",
    "EngineUnavailable",
    "Enough",
    "Finish",
    "Message",
    "ModelCard",
    "Piece",
    "Pouring",
    "Prefix",
    "Prompt",
    "Say",
    "Tap",
    "create",
]

"""How every role lives: settings, logging, signals, the watch for a vanished supervisor, and an exit code.

0 ended as asked · 1 failed · 2 wrong settings · 3 cannot start (a port is busy, NATS does not answer)
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TextIO, TypeVar, cast

import structlog

from broker.bus import clock, garbage
from broker.bus.errors import BusError, SettingsInvalid
from broker.bus.lossy import Lossy
from broker.bus.settings import RoleSettings, load, misspelt

Settings = TypeVar("Settings", bound=RoleSettings)
Main = Callable[[Settings, asyncio.Event], Awaitable[None]]

PARENT_CHECK = 0.5

log = structlog.get_logger("lifecycle")


def launch(role: str, kind: type[Settings], main: Main[Settings], *, holds_streams: bool = False) -> int:
    """Run a role until it is told to stop; returns the exit code.

    holds_streams: by the thousand, so that the garbage collector is told when to look (`garbage.py`).
    `main(settings, stop)` serves until `stop` is set, then drains within `settings.drain_timeout` and returns.
    """
    try:
        settings = load(kind)
    except SettingsInvalid as error:
        configure_logging("error")
        for name, why in error.problems.items():
            _say(f"{role}: {name}: {why}", "settings.invalid", role=role, setting=name, why=why)
        return 2
    clock.set_offset(settings.clock_offset)
    configure_logging(settings.log_level)
    for name, why in misspelt(kind, os.environ).items():
        log.warning("settings.unknown", setting=name, why=why)
    raise_file_limit()
    garbage.settle(by_turnover=holds_streams)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_live(role, settings, main))
    except (OSError, BusError) as error:
        _say(f"{role}: cannot start: {error}", "role.cannot_start", role=role, why=str(error))
        return 3
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the safety net of the process: say it once, in the log, and fail
        log.error("role.failed", role=role, exc_info=error)
        return 1
    return 0


def _say(sentence: str, event: str, **fields: str) -> None:
    """Why a role ends: to a person at a terminal in a sentence, else as an error among what it logs."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{sentence}\n")
    else:
        log.error(event, **fields)


async def _live(role: str, settings: Settings, main: Main[Settings]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watch = asyncio.create_task(_watch_parent(settings.parent_pid, stop), name="parent-watch")
    try:
        await main(settings, stop)
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _watch_parent(parent: int, stop: asyncio.Event) -> None:
    """A role whose supervisor vanishes drains and ends by itself (no signal tells, so this one polls)."""
    while parent:
        await asyncio.sleep(PARENT_CHECK)
        if os.getppid() != parent:
            log.warning("role.orphaned", parent=parent)
            stop.set()
            return


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's where it exists (not on Windows)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def raise_file_limit() -> None:
    """As many open files as the machine allows: every viewer is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (min(hard, 1_048_576) if hard != resource.RLIM_INFINITY else 65536, hard)
        )


def configure_logging(level: str) -> None:
    """structlog to stderr: JSON unless it is a terminal. Never a token's text, never a credential.

    What libraries say by the standard library's logging looks the same: whoever collects it finds its level.
    """
    number = getattr(logging, level.upper())
    file = cast(TextIO, Lossy(sys.stderr))
    stamp = structlog.processors.TimeStamper(fmt="iso")
    rendered: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, stamp, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=file),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter
    libraries = logging.StreamHandler(file)
    libraries.setFormatter(
        formatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.add_log_level, stamp],
            processors=[formatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[libraries])

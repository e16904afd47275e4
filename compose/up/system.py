"""`okome up` from flags to exit code: opens what is needed, runs the supervisor, says what runs, ends everything."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any

from broker.bus.errors import BusError, Refusal, SettingsInvalid
from broker.bus.nats import Bus
from broker.bus.operations import CreateTicket, TicketCreated
from broker.bus.retry import retry
from broker.bus.settings import RoleSettings
from compose.folder import Unusable
from compose.up import firstkey, plan, readyfile, settings, statefile
from compose.up.datadir import DataDir, DirectoryBusy, KeyInvalid, sweep
from compose.up.keeper import Keeper, StartFailed, State
from compose.up.options import Options, OptionsInvalid
from compose.up.plan import EngineMissing
from compose.up.ports import PortBusy, Ports
from compose.up.probe import Probe
from compose.up.screen import Screen
from compose.up.supervisor import Supervisor

OK, USAGE, CANNOT_START, INTERRUPTED = 0, 2, 3, 130
TICKET_TIMEOUT = 30.0


async def up(options: Options) -> int:
    """Run the system until it is told to stop. Returns the exit code; nothing is left running."""
    screen = Screen(json=options.json)
    signals = _Signals()
    try:
        # Signals are given back last: an impatient Ctrl-C while things are put away must not break that off.
        async with AsyncExitStack() as stack:
            stack.callback(signals.close)
            ports = stack.enter_context(Ports())
            for left in sweep():
                screen.warn(f"removed {left}, which an `okome up` that was killed had left")
            data = stack.enter_context(DataDir(options.data))
            with _found_or_warned(screen):
                statefile.forget(data.path)
            key, key_made = data.api_key(options.api_key)
            planned = plan.make(options, data, ports, key, os.environ)
            parts = [part for stage in planned.stages for part in stage]
            for name, why in {**settings.unknown(os.environ), **settings.overridden(parts, os.environ)}.items():
                screen.warn(f"{name} {why}")
            settings.check(parts, os.environ)
            system = _System(options, screen, data, planned, key, key_made)
            return await system.run(stack, signals)
    except (OptionsInvalid, Unusable) as error:
        screen.refused(str(error))
        return USAGE
    except SettingsInvalid as error:
        for name, why in error.problems.items():
            screen.refused(f"{name}: {why}")
        return USAGE
    except StartFailed:  # said already
        return CANNOT_START
    except (EngineMissing, PortBusy, DirectoryBusy, KeyInvalid, OSError, BusError, Refusal) as error:
        screen.refused(str(error))
        return CANNOT_START


class _Signals:
    """The first signal asks for an orderly end, the second for a quick one."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry: asyncio.Event | None = None
        self.code = OK
        self._loop = asyncio.get_running_loop()
        self._numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
            self._numbers.append(signal.SIGHUP)
        for number in self._numbers:
            self._loop.add_signal_handler(number, self._take, number)

    def _take(self, number: signal.Signals) -> None:
        if not self.stop.is_set():
            self.code = INTERRUPTED if number == signal.SIGINT else OK
            self.stop.set()
        elif self.hurry is not None:
            self.hurry.set()

    def close(self) -> None:
        for number in self._numbers:
            self._loop.remove_signal_handler(number)


class _System:
    def __init__(
        self, options: Options, screen: Screen, data: DataDir, planned: plan.Plan, key: str, key_made: bool
    ) -> None:
        self._options = options
        self._screen = screen
        self._data = data
        self._plan = planned
        self._key = key
        self._key_made = key_made
        self._page_url = ""  # empty until the system is ready
        self._state_file = statefile.new()
        self._keepers: list[Keeper] = []

    async def run(self, stack: AsyncExitStack, signals: _Signals) -> int:
        if self._options.ready_file:
            self._options.ready_file.unlink(missing_ok=True)  # whoever waits for it must not find the last one's
        trusted = ssl.create_default_context(cafile=str(self._plan.ca)) if self._plan.ca else None
        probe = Probe(trusted)
        stack.push_async_callback(probe.close)
        supervisor = Supervisor(
            self._plan.stages,
            logs=self._data.logs,
            probe=probe,
            on_change=self._changed,
            restarting=self._options.restart,
            start_timeout=self._options.start_timeout,
            stop_timeout=self._options.stop_timeout,
        )
        signals.hurry = supervisor.hurry
        self._keepers = supervisor.keepers
        self._screen.starting(self._keepers)
        async with supervisor:
            starting = asyncio.create_task(self._start(supervisor))
            stopping = asyncio.create_task(signals.stop.wait())
            try:
                await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    starting.result()
                    await stopping
            except StartFailed as failure:
                self._screen.failed(failure)  # at once, not after the others have drained
                raise
            finally:
                starting.cancel()
                stopping.cancel()
                await asyncio.gather(starting, stopping, return_exceptions=True)
            with suppress(OSError):  # what is left of it does not count
                self._state_file.unlink(missing_ok=True)
            interrupted_start, self._page_url = not self._page_url, ""
            self._screen.stopping()
            await supervisor.stop()
            self._screen.stopped(supervisor.killed)
        return INTERRUPTED if interrupted_start else signals.code

    async def _start(self, supervisor: Supervisor) -> None:
        await supervisor.start()
        okome = settings.okome(part for stage in self._plan.stages for part in stage)
        ticket = await login_ticket(okome)
        key_counts = await firstkey.counts(okome, self._key)
        self._page_url = f"{self._plan.url}/#t={ticket}"
        with _found_or_warned(self._screen):
            statefile.sweep()
        self._publish()
        self._screen.ready(
            url=self._plan.url,
            page_url=self._page_url,
            new_key=self._key if self._key_made else "",
            data=self._data.path,
            temporary=self._data.temporary,
            ca=self._plan.ca,
        )
        if not key_counts:
            self._screen.warn(firstkey.lost(None if self._options.api_key else self._data.key_file))

    def _changed(self, keeper: Keeper) -> None:
        self._screen.changed(keeper)
        if self._page_url and (keeper.state is State.READY or keeper.gone):
            try:
                self._publish()
            except OSError as error:  # the system runs on; whoever reads the file sees the older one
                self._screen.warn(f"the ready file could not be rewritten: {error}")

    def _publish(self) -> None:
        document = self._document()
        text = readyfile.dump(document)
        with _found_or_warned(self._screen):
            statefile.write(self._state_file, document)
        if self._options.ready_file:
            readyfile.write(self._options.ready_file, text)
        if self._options.json:
            self._screen.line(text)

    def _document(self) -> dict[str, Any]:
        return readyfile.describe(
            self._keepers,
            url=self._plan.url,
            page_url=self._page_url,
            api_key=self._key,
            nats_url=self._plan.nats_url,
            redis_url=self._plan.redis_url,
            data=self._data.path,
        )


@contextmanager
def _found_or_warned(screen: Screen) -> Iterator[None]:
    """Around what is done for the other commands alone: a system without state files serves as well."""
    try:
        yield
    except OSError as error:
        screen.warn(f"the other commands may not find this system by themselves: {error}")


async def login_ticket(okome: RoleSettings) -> str:
    """A one-use ticket that opens the chat page, asked for at OKOME's NATS. Raises BusError or Refusal."""
    bus = await Bus.of(okome, "okome-up")
    try:
        wanted = CreateTicket(tenant="default", kind="login")
        deadline = asyncio.get_running_loop().time() + TICKET_TIMEOUT
        made = await retry(lambda: bus.ask("ticket_create", wanted, TicketCreated), deadline)
    finally:
        await bus.close()
    return made.ticket

"""Faults of processes: killed, asked to end, frozen. The proof is read from the kernel."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from compose.chaos.fault import DidNotHappen, Fault, shows
from compose.chaos.whole import Process

SIGN_TIMEOUT = 20.0
"""Seconds in which a fault must have happened. Who is killed in the middle of a write ends behind it."""
WRONG_TIMEOUT = 3.0
"""The same in a control run, where it will not happen."""
DRAIN_TIMEOUT = 30.0


def state(pid: int) -> str:
    """A process's state as the kernel has it: R, S, D, T (stopped); Z when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def kill(victim: Process, aim: Process) -> Fault:
    """SIGKILL."""

    async def strike() -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself: then it is gone as well
            os.kill(aim.pid, signal.SIGKILL)

    def gone() -> str | None:
        return f"pid {victim.pid} is gone" if state(victim.pid) == "Z" else None

    timeout = SIGN_TIMEOUT if aim is victim else WRONG_TIMEOUT
    return Fault(_name(victim), strike, lambda: shows(gone, f"the end of pid {victim.pid}", timeout), ends=(aim,))


def kill_all(victims: Sequence[Process], aims: Sequence[Process]) -> Fault:
    """SIGKILL to all of them at once, the first one first: whoever would start the others anew."""

    async def strike() -> None:
        for aim in aims:
            with contextlib.suppress(ProcessLookupError):  # it ended with one before it
                os.kill(aim.pid, signal.SIGKILL)

    def gone() -> str | None:
        left = [one.pid for one in victims if state(one.pid) != "Z"]
        return None if left else f"{len(victims)} processes are gone: {', '.join(one.id for one in victims)}"

    timeout = SIGN_TIMEOUT if aims is victims else WRONG_TIMEOUT
    return Fault("everything", strike, lambda: shows(gone, f"the end of {len(victims)} processes", timeout))


def terminate(victim: Process, aim: Process) -> Fault:
    """SIGTERM: it drains and ends by itself."""

    async def strike() -> None:
        _send(aim, signal.SIGTERM)

    def ended() -> str | None:
        return f"pid {victim.pid} has drained and ended" if state(victim.pid) == "Z" else None

    timeout = DRAIN_TIMEOUT if aim is victim else WRONG_TIMEOUT
    return Fault(_name(victim), strike, lambda: shows(ended, f"the end of pid {victim.pid}", timeout), ends=(aim,))


def freeze(victim: Process, aim: Process) -> Fault:
    """SIGSTOP; `undo` lets it go on."""

    async def strike() -> None:
        _send(aim, signal.SIGSTOP)

    async def undo() -> None:
        if state(aim.pid) != "Z":
            os.kill(aim.pid, signal.SIGCONT)

    def stopped() -> str | None:
        return f"pid {victim.pid} is stopped (T)" if state(victim.pid) == "T" else None

    timeout = SIGN_TIMEOUT if aim is victim else WRONG_TIMEOUT
    return Fault(_name(victim), strike, lambda: shows(stopped, f"pid {victim.pid} in state T", timeout), undo)


def lame_duck(victim: Process, aim: Process, log: Callable[[], str]) -> Fault:
    """SIGUSR2 to a NATS server: it tells its clients to leave, and ends later. `log`: what it has written so far."""
    sign = "Entering lame duck mode"
    before = log().count(sign)

    async def strike() -> None:
        _send(aim, signal.SIGUSR2)

    def entered() -> str | None:
        return f"{victim.id} wrote: {sign}" if log().count(sign) > before else None

    timeout = SIGN_TIMEOUT if aim is victim else WRONG_TIMEOUT
    return Fault(_name(victim), strike, lambda: shows(entered, f"{victim.id} saying {sign!r}", timeout), ends=(aim,))


def _name(victim: Process) -> str:
    return f"{victim.id} (pid {victim.pid})"


def _send(aim: Process, number: signal.Signals) -> None:
    """Raises DidNotHappen where nobody is left to be told."""
    try:
        os.kill(aim.pid, number)
    except ProcessLookupError:
        raise DidNotHappen(f"{_name(aim)} has ended by itself") from None

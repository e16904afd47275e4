"""What the supervisor says may be lost; whatever it does is done all the same."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import signal
import sys
from pathlib import Path

import pytest

from compose.up.keeper import Keeper, State
from compose.up.ports import Ports
from compose.up.probe import Probe
from compose.up.screen import Screen
from compose.up.supervisor import Supervisor
from tests.compose.up.host import fake

DEADLINE = 15.0


class Failing(io.StringIO):
    """A file that cannot be written to any more, once `fault` is set."""

    fault = 0

    def write(self, text: str) -> int:
        if self.fault:
            raise OSError(self.fault, os.strerror(self.fault))
        return super().write(text)


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EPIPE], ids=["disk full", "terminal gone", "pipe"])
async def test_a_dead_part_is_started_again_although_nobody_can_be_told(
    fault: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr, stdout = Failing(), Failing()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", stdout)
    screen, probe, back = Screen(json=False), Probe(), asyncio.Event()

    def changed(keeper: Keeper) -> None:
        screen.changed(keeper)
        if keeper.restarts and keeper.state is State.READY:
            back.set()

    with Ports() as ports:
        async with Supervisor([[fake(ports, "node")]], logs=tmp_path, probe=probe, on_change=changed) as supervisor:
            await supervisor.start()
            assert "node-1: ready after" in stderr.getvalue()
            stderr.fault = stdout.fault = fault
            screen.ready(url="http://x", page_url="http://x/", new_key="", data=tmp_path, temporary=True, ca=None)
            os.kill(supervisor.keepers[0].pid, signal.SIGKILL)
            async with asyncio.timeout(DEADLINE):
                await back.wait()
            screen.stopping()
    screen.stopped(supervisor.killed)
    await probe.close()
    assert stdout.getvalue() == ""


def test_a_terminal_that_goes_while_the_list_is_drawn_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Failing()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    screen = Screen(json=True)
    screen.starting([])
    terminal.fault = errno.EIO
    screen.refused("enough")
    assert "okome" in terminal.getvalue()


def test_where_there_is_no_stdout_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    Screen(json=True).line("ready")

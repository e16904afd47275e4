"""What `make` does for a person at a terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TIMEOUT = 30.0

OKOME = """#!/bin/sh
trap 'echo stopped; exit 130' INT
echo "ready $*"
while :; do sleep 0.1; done
"""

AT_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_ctrl_c_ends_make_up_without_an_error(tmp_path: Path) -> None:
    program = tmp_path / "okome"
    program.write_text(OKOME)
    program.chmod(0o755)
    terminal, its_end = pty.openpty()
    words = ["make", "-o", "install", "up", f"BIN={tmp_path}", "ARGS=--port 9000"]
    make = subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL, *words],
        cwd=ROOT,
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        start_new_session=True,
    )
    os.close(its_end)
    said = b""
    try:
        while b"ready" not in said:
            said += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        while b"stopped" not in said:
            said += os.read(terminal, 4096)
        assert make.wait(TIMEOUT) == 0, said
    finally:
        make.kill()
        make.wait()
        os.close(terminal)
    assert b"ready up --port 9000" in said


def test_any_other_end_is_one(tmp_path: Path) -> None:
    program = tmp_path / "okome"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    told = subprocess.run(
        ["make", "-o", "install", "up", f"BIN={tmp_path}"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert told.returncode == 2

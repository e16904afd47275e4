"""`okome up` where a role does not become ready: what it says meanwhile, and how it is broken off."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

END_TIMEOUT = 20.0


def test_who_waits_is_told_for_what_and_may_leave(tmp_path: Path) -> None:
    with socket.socket() as silent, (tmp_path / "said").open("w") as said:
        silent.bind(("127.0.0.1", 0))  # bound and not listening: refused
        server = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "compose.cli.main", "up", "--engine", "openai", "--port", "0"],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("OKOME_")},
                "OKOME_WORKER_OPENAI_URL": server,
                "XDG_STATE_HOME": str(tmp_path / "state"),
            },
            stdout=said,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        try:
            told = next(line for line in process.stderr if "worker-1 is not ready yet" in line)
            assert server in told
            assert "refused" in told
            process.send_signal(signal.SIGINT)
            assert next(process.stderr) == "stopping…\n"
            rest = process.stderr.read()
            assert process.wait(END_TIMEOUT) == 130
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
    assert "killed" not in rest
    assert "nothing is left running" in rest
    assert (tmp_path / "said").read_text() == ""

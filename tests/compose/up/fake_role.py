"""A role in one file, standard library only: what the supervisor's tests run instead of a real one.

`python fake_role.py PORT PARENT_PID [FAULT…]`, a fault being one of: `deaf` (ignores SIGTERM), `late` (never ready),
`ends` (ends at once with status 7), `engine` (has a child process and tells of it), `once` (ends at the second start,
remembered in the file that FAKE_ROLE_MEMORY names).
"""

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT, PARENT, FAULTS = int(sys.argv[1]), int(sys.argv[2]), set(sys.argv[3:])
ended = threading.Event()


def engine() -> subprocess.Popen[bytes]:
    """Ends with this process: its stdin closes."""
    return subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)


class Face(BaseHTTPRequestHandler):
    children: tuple[subprocess.Popen[bytes], ...] = ()

    def do_GET(self) -> None:
        ready = "late" not in FAULTS
        told = [{"id": "model", "pid": one.pid} for one in self.children]
        body = json.dumps({"engines": told}) if self.path == "/version" else "ok" if ready else "still dreaming"
        self.send_response(200 if ready or self.path == "/version" else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


def main() -> int:
    sys.stderr.write(f"fake role on {PORT}\n")
    if "ends" in FAULTS:
        sys.stderr.write("I would rather not\n")
        return 7
    if "once" in FAULTS:
        memory = Path(os.environ["FAKE_ROLE_MEMORY"])
        starts = memory.read_text() if memory.exists() else ""
        memory.write_text(starts + "x")
        if len(starts) == 1:
            return 7
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in FAULTS else lambda *_: ended.set())
    if "engine" in FAULTS:
        Face.children = (engine(),)
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Face)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not ended.wait(0.1):
        if os.getppid() != PARENT:
            break
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

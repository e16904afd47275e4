"""A supervisor in a process of its own, so that a test can kill it: `python -m tests.compose.up.host DIRECTORY`.

Runs a real nats-server, a real Valkey and two fake roles; writes their pids as one JSON line, then runs until SIGTERM.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from compose.up import servers
from compose.up.datadir import DataDir
from compose.up.part import Part
from compose.up.ports import Ports
from compose.up.probe import Probe
from compose.up.supervisor import Supervisor

FAKE = Path(__file__).with_name("fake_role.py")


def fake(ports: Ports, role: str, *faults: str) -> Part:
    port = ports.free()
    url = f"http://127.0.0.1:{port}"
    return Part(
        role=role,
        id=f"{role}-1",
        argv=(sys.executable, "-S", str(FAKE), str(port), str(os.getpid()), *faults),
        probe=f"{url}/readyz",
        env=dict(os.environ),
        tells_engines=f"{url}/version" if role == "worker" else None,
    )


async def main(directory: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    probe = Probe()
    with Ports() as ports, DataDir(directory) as data:
        nats, _ = servers.nats(1, data, ports)
        redis, _ = servers.redis(data, ports)
        stages = [[*nats, redis], [fake(ports, "node"), fake(ports, "worker", "engine")]]
        async with Supervisor(stages, logs=data.logs, probe=probe, on_change=lambda _: None) as supervisor:
            await supervisor.start()
            pids = {keeper.part.id: keeper.pid for keeper in supervisor.keepers}
            pids |= {one.id: one.pid for keeper in supervisor.keepers for one in keeper.engines}
            sys.stdout.write(json.dumps(pids) + "\n")
            sys.stdout.flush()
            await stop.wait()
    await probe.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

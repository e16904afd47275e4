"""Runs a program that dies with its parent: `python tether.py PARENT_PID PROGRAM ARGUMENT…`.

For nats-server and valkey-server, which know nothing of a supervisor. They are killed, not asked: after a supervisor's
own death nobody is there to insist, and what NATS has acknowledged is safe on its disk. The process becomes the
program, so its pid is the program's. Run by path with `-I -S`: it imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent:  # it died before the line above
            sys.exit(1)
    else:
        _watch(parent, os.getpid())


def _watch(parent: int, program: int) -> None:
    """Leave a second process behind that kills `program` when `parent` ends, and ends with `program` (BSD, macOS)."""
    import select

    if os.fork():
        return
    try:
        queue = select.kqueue()  # type: ignore[attr-defined,unused-ignore]
        try:
            for pid in (parent, program):
                queue.control(
                    [
                        select.kevent(  # type: ignore[attr-defined,unused-ignore]
                            pid,
                            filter=select.KQ_FILTER_PROC,  # type: ignore[attr-defined,unused-ignore]
                            flags=select.KQ_EV_ADD | select.KQ_EV_ONESHOT,  # type: ignore[attr-defined,unused-ignore]
                            fflags=select.KQ_NOTE_EXIT,  # type: ignore[attr-defined,unused-ignore]
                        )
                    ],
                    0,
                )
            ended = queue.control([], 1)[0].ident
        except ProcessLookupError:  # one of them is gone already
            ended = parent
        if ended == parent:
            os.kill(program, signal.SIGKILL)
    finally:
        os._exit(0)


def main(argv: list[str]) -> None:
    _die_with(int(argv[0]))
    os.execv(argv[1], argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])

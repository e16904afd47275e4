"""How a command ends: a sentence on stderr, and an exit code: 0 ok, 1 failed, 2 usage, 3 cannot start, 130 Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator

import typer

OK, FAILED, USAGE, CANNOT_START, INTERRUPTED = 0, 1, 2, 3, 130


class CommandFailed(Exception):
    """The command could not do what it was asked; the message says why, in a sentence for a person."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def outcome() -> Iterator[None]:
    """Around a command's body: turns what it raises into a message and an exit code, never into a stack trace."""
    from broker.bus.errors import BusUnavailable, Refusal, SettingsInvalid, StoreRejected
    from compose.folder import Unusable

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what a terminal cannot write is no reason to write nothing
    try:
        yield
    except CommandFailed as error:
        _say(str(error))
        raise typer.Exit(error.code) from None
    except Unusable as error:
        _say(str(error))
        raise typer.Exit(USAGE) from None
    except Refusal as error:
        _say(f"{error.message} ({error.code})")
        raise typer.Exit(FAILED) from None
    except (BusUnavailable, StoreRejected) as error:
        _say(str(error))
        raise typer.Exit(FAILED) from None
    except SettingsInvalid as error:
        for name, why in error.problems.items():
            _say(f"{name}: {why}")
        raise typer.Exit(USAGE) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read us has enough (`| head`). Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + signal.SIGPIPE) from None


def _say(message: str) -> None:
    sys.stderr.write(f"okome: {message}\n")

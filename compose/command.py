"""How this command was called, so that what a person is told to type can be typed: it need not be on their PATH."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def command() -> str:
    """`okome` where the PATH leads to this very program, else its place, from here where that is shorter."""
    program = Path(sys.argv[0])
    if program.suffix == ".py":  # python -m
        return f"{shlex.quote(sys.executable)} -m compose.cli.main"
    found = shutil.which(program.name)
    if found is not None and Path(found).resolve() == program.resolve():
        return program.name
    from_here = os.path.relpath(program.absolute())
    return shlex.quote(str(program.absolute()) if from_here.startswith(os.pardir) else from_here)

"""Programs that came in wheels, found through their package's files and never through PATH."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def program(package: str, name: str) -> Path:
    """The file `name` of an installed distribution. Raises FileNotFoundError, saying what to install."""
    try:
        held = files(package) or []
    except PackageNotFoundError:
        held = []
    for file in held:
        if file.name == name and (path := Path(str(file.locate()))).is_file():
            return path.resolve()
    raise FileNotFoundError(f"no {name} here: pip install {package}")

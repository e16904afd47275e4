"""A file that is written beside its place, and then put there at once."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def replace(path: Path, data: bytes, mode: int) -> None:
    """Of this mode from its first byte; whoever is interrupted leaves what was there, or a draft. Raises OSError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise

"""What can be said about the code without running it: types, lint, length."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MYPY_TIMEOUT = 300
RUFF_TIMEOUT = 60
LONGEST_FILE = 500


def run(*command: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.timeout(MYPY_TIMEOUT)
def test_every_type_is_right() -> None:
    """mypy --strict, over the packages and the tests."""
    done = run("mypy", timeout=MYPY_TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_has_nothing_to_say() -> None:
    """ruff with the rules of pyproject.toml."""
    done = run("ruff", "check", "--output-format=concise", ".", timeout=RUFF_TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_longer_than_its_noun() -> None:
    """A file is one noun: beyond 500 lines it is two."""
    paths = [path for path in ROOT.rglob("*.py") if not any(part.startswith(".") for part in path.parts)]
    long = {str(path.relative_to(ROOT)): count for path in paths if (count := length(path)) > LONGEST_FILE}
    assert long == {}


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())

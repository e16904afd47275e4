"""What a person is told to type can be typed."""

import subprocess
import sys
from pathlib import Path

import pytest

from compose.command import command


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an installed `okome` may be; it says its first argument."""
    program = tmp_path / "a place" / "bin" / "okome"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$1"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    return program


def typed(line: str, where: Path) -> str:
    return subprocess.run(["sh", "-c", line], cwd=where, capture_output=True, text=True, check=True).stdout.strip()


def test_on_the_path_its_name_is_enough(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    assert command() == "okome"


def test_elsewhere_its_place_is_said(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for here, said in ((tmp_path, "'a place/bin/okome'"), (program.parent / "..", "bin/okome")):
        monkeypatch.chdir(here)
        assert command() == said
        assert typed(f"{said} chat", here) == "chat"
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path / "beside")
    assert typed(f"{command()} chat", tmp_path) == "chat"


def test_another_program_of_that_name_on_the_path_is_not_taken_for_it(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "okome"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command() != "okome"


def test_a_module_is_called_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/compose/cli/main.py"])
    assert command() == f"{sys.executable} -m compose.cli.main"

"""The commands of README and docs/api.md, as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.system import System

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("readme")) as running:
        yield running


def examples(language: str) -> list[str]:
    """The examples of docs/api.md in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)


def blocks() -> list[str]:
    """The commands below the mark that says so: those above it start the system, or hold what it printed."""
    _, mark, rest = (ROOT / "README.md").read_text().partition("<!-- these blocks are run as they stand")
    assert mark
    return BLOCK.findall(rest)


def run(system: System, commands: str) -> subprocess.CompletedProcess[str]:
    known = {"OKOME_URL": system.url, "OKOME_API_KEY": system.api_key, "NO_COLOR": "1"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OKOME_")}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=ROOT,
        env=clean | known,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_the_first_curl_streams_an_answer_to_its_end(system: System) -> None:
    done = run(system, blocks()[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("event: token") >= 1
    assert "7.19 " in done.stdout
    assert "event: done" in done.stdout


def test_the_command_line_does_what_the_readme_says(system: System) -> None:
    done = run(system, blocks()[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scripted" in done.stdout
    assert "7.0 7.1 7.2" in done.stdout


def test_the_curls_of_the_api_page_ask_for_an_answer_and_stream_it(system: System) -> None:
    done = run(system, "\n".join(examples("sh")))
    assert done.returncode == 0, done.stderr
    assert "7.19 " in done.stdout
    assert done.stdout.count("event: done") == 2


def test_the_python_of_the_api_page_prints_an_answer_to_its_end(system: System, tmp_path: Path) -> None:
    (program,) = examples("python")
    (tmp_path / "example.py").write_text(program)
    done = run(system, f"{shlex.quote(sys.executable)} {shlex.quote(str(tmp_path / 'example.py'))}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"7.{index}" for index in range(20)]


def test_every_command_of_the_makefile_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets

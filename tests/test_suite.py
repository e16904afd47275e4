"""The lanes of the whole suite: one that fails fails the run, and nothing runs behind it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.suite import LANES, run

TIMEOUT = 30.0


def lane(code: int, says: str) -> list[str]:
    return [sys.executable, "-c", f"print({says!r}); raise SystemExit({code})"]


@pytest.mark.parametrize(("codes", "expected"), [((0, 0, 0), 0), ((0, 3, 0), 3), ((1, 0, 4), 1), ((0, 0, 5), 5)])
def test_the_first_failure_is_the_runs_and_all_that_was_said_is_shown(
    codes: tuple[int, ...], expected: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([lane(code, f"lane {index}") for index, code in enumerate(codes)]) == expected
    assert sorted(capfd.readouterr().out.split("\n")) == ["", *(f"lane {index}" for index in range(len(codes)))]


def test_every_test_is_in_one_lane() -> None:
    """Whatever is not named is the first lane's."""
    first, *others = LANES
    named = [word for lane in others for word in lane if word.startswith("tests")]
    assert sorted(named) == sorted(word.removeprefix("--ignore=") for word in first if word.startswith("--ignore="))
    assert all(Path(path).exists() for path in named)


CLEANS = """
import pathlib, sys, time
try:
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)
    print("cleaned")
"""


def test_whoever_ends_it_waits_until_each_lane_has_cleaned_up(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in "abc"]
    lanes = [[sys.executable, "-c", CLEANS, str(path)] for path in runs]
    program = f"import sys; from tests.suite import run; sys.exit(run({lanes!r}))"
    suite = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not all(path.exists() for path in runs) and time.monotonic() < deadline:
            time.sleep(0.02)
        suite.send_signal(signal.SIGTERM)
        said, _ = suite.communicate(timeout=TIMEOUT)
    finally:
        suite.kill()
        suite.wait()
    assert said == "cleaned\n" * 3
    assert suite.returncode == 130

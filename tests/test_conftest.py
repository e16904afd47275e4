"""The rules of the run are rules: each is broken on purpose in a run of its own, and that run fails."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
RUN_TIMEOUT = 60
END_TIMEOUT = 10


@pytest.fixture
def inner(tmp_path: Path) -> Path:
    """A folder with this suite's conftest.py and event-loop rule, and no tests yet."""
    fixtures = tmp_path / "tests" / "fixtures"
    fixtures.mkdir(parents=True)
    for folder in (fixtures.parent, fixtures):
        (folder / "__init__.py").touch()
    shutil.copy(HERE / "conftest.py", fixtures.parent)
    shutil.copy(HERE / "fixtures" / "event_loop.py", fixtures)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    return tmp_path


def run(tree: Path, test: str, ci: str) -> subprocess.CompletedProcess[str]:
    (tree / "tests" / "test_inner.py").write_text(test)
    # PYTEST_ADDOPTS and the like of the outer run are not the inner run's.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {"CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "pytest_asyncio.plugin", "-p", "no:cacheprovider", "tests"]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT)


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


SKIPPING = "import pytest\ndef test_it():\n    pytest.skip('the component is not here')\n"
SKIPPING_MODULE = "import pytest\npytest.skip('the component is not here', allow_module_level=True)\n"


@pytest.mark.parametrize("test", [SKIPPING, SKIPPING_MODULE], ids=["test", "module"])
@pytest.mark.parametrize(("ci", "fails"), [("true", True), ("", False)])
def test_a_skip_is_a_failure_under_ci_only(test: str, ci: str, fails: bool, inner: Path) -> None:
    """A developer without Docker gets a skip, CI without Docker a red run."""
    done = run(inner, test, ci)
    assert "the component is not here" in done.stdout or not fails, done.stdout
    assert (done.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)) == fails, done.stdout


def test_an_orphan_left_running_fails_the_run_and_is_ended(inner: Path) -> None:
    """A process in a session of its own, whose parent is gone, is still found."""
    orphan = (
        "import pathlib, subprocess, sys\n"
        "def test_it():\n"
        "    sleeper = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "    starter = f'import subprocess; print(subprocess.Popen({sleeper!r}, start_new_session=True).pid)'\n"
        "    done = subprocess.run([sys.executable, '-c', starter], stdout=subprocess.PIPE, text=True, timeout=30)\n"
        "    pathlib.Path('pid').write_text(done.stdout)\n"
    ).replace("Popen({sleeper!r}", "Popen({sleeper!r}, stdout=subprocess.DEVNULL")
    done = run(inner, orphan, "")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "processes left running" in done.stdout
    pid = int((inner / "pid").read_text())
    deadline = time.monotonic() + END_TIMEOUT
    while not ended(pid):  # it has been killed, which takes effect when the kernel comes to it
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.01)


def test_what_a_loop_only_logs_fails_the_test(inner: Path) -> None:
    """An exception in a callback reaches no caller, but it does reach the report."""
    callback = "import asyncio\nasync def test_it():\n    asyncio.get_running_loop().call_soon(lambda: 1 / 0)\n"
    done = run(inner, callback + "    await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0))])\n", "")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "ZeroDivisionError" in done.stdout

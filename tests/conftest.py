"""What holds for the whole run: which plugins it has, that nothing is skipped under CI, that no process is left.

Fixtures live in `fixtures/`, one noun a file; a new file there is a plugin without being named here.
"""

import os
import uuid
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

pytest_plugins = [
    f"tests.fixtures.{path.stem}"
    for path in sorted((Path(__file__).parent / "fixtures").glob("*.py"))
    if path.stem != "__init__"
]

UNDER_CI = os.environ.get("CI", "").lower() in {"1", "true"}

# Every process that descends from this run inherits the mark, so it is found even after its parent has died.
MARK = "STRAY_PROCESS_MARK"
os.environ[MARK] = uuid.uuid4().hex

LEAVE_TIMEOUT = 5.0
left_running: list[str] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test skips where a component is missing, and CI installs every component: there a skip is a failure."""
    report = yield
    if UNDER_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which under CI is a failure: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself while it is collected."""
    report = yield
    if UNDER_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, which under CI is a failure: {report.longrepr}"
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Whatever the run has started must be gone when its last fixture is."""
    _, alive = psutil.wait_procs(descendants(), timeout=LEAVE_TIMEOUT)
    for process in alive:
        try:
            left_running.append(f"{process.pid} {' '.join(process.cmdline()) or process.name()}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    if left_running:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if left_running:
        terminalreporter.section("processes left running", sep="!", red=True)
        for line in left_running:
            terminalreporter.line(line)


def descendants() -> list[psutil.Process]:
    """Children of this process and orphans that carry its mark; zombies have ended and do not count."""
    found = set(psutil.Process().children(recursive=True))
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == os.environ[MARK]:
                found.add(process)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's: not ours either way
    return [process for process in found if runs(process)]


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False

"""Imports go down only, roles never import one another, and one file knows the NATS client."""

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["broker", "control", "gpu_worker", "ingress", "compose", "bench"]
LINT_TIMEOUT = 60


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """The contracts of pyproject.toml, checked on the packages that lie in `tree`."""
    command = [
        str(Path(sys.executable).parent / "lint-imports"),
        "--no-cache",
        "--config",
        str(ROOT / "pyproject.toml"),
    ]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=LINT_TIMEOUT)


def test_the_layers_hold() -> None:
    """compose, then the roles, then broker.bus: no import goes up or across."""
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("ingress", "broker.node"),
        ("control", "gpu_worker"),
        ("gpu_worker", "compose"),
        ("broker/bus", "control"),
        ("compose", "bench"),
        ("broker/bus", "fastapi"),
    ],
)
def test_an_import_that_goes_up_or_across_is_noticed(module: str, imported: str, tmp_path: Path) -> None:
    """The contracts are no formality: one wrong import in a copy of the tree breaks them."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "broker" / "node").mkdir(exist_ok=True)
    (tmp_path / "broker" / "node" / "__init__.py").touch()
    init = tmp_path / module / "__init__.py"
    init.write_text(f"{init.read_text()}\nimport {imported}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def test_three_files_know_the_nats_client() -> None:
    """Whatever speaks NATS does it by the verbs of `nats.py`, which has the wire and the service beside it, so the
    client's traps are handled in one place."""
    graph = grimp.build_graph(PACKAGES[0], *PACKAGES[1:], include_external_packages=True, cache_dir=None)
    if "nats" not in graph.modules:
        pytest.fail("nobody imports nats")
    importers = graph.find_modules_that_directly_import("nats")
    assert importers == {f"broker.bus.{name}" for name in ("nats", "wire", "service")}

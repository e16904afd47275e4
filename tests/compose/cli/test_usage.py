"""What the command says when it is misused, and with which exit code; run as a person runs it, in a process."""

import json
import os
import pty
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ingress.tls import make_ca
from tests.fixtures.command import TIMEOUT, okome

BUILT = ("up", "chat", "tail", "doctor", "models", "route", "drain", "keys", "role")
NOT_BUILT = ("top", "drafts")


def test_help_is_there_for_every_command(tmp_path: Path) -> None:
    told = okome("--help", home=tmp_path)
    assert told.returncode == 0
    for command in BUILT:
        assert f"│ {command} " in told.stdout


def test_help_offers_nothing_that_is_not_built(tmp_path: Path) -> None:
    for command in ((), ("up",)):
        told = okome(*command, "--help", home=tmp_path).stdout
        assert "ot built" not in told
        assert not [name for name in (*NOT_BUILT, "vllm", "ollama", "tensorflow") if f" {name}" in told]
    assert (
        "one of smollm2, scripted, openai\n" in okome("up", "--engine", "abacus", "--port", "0", home=tmp_path).stderr
    )


def test_the_commands_that_talk_to_nats_say_so_and_the_manual_names_them_all(tmp_path: Path) -> None:
    manual = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    (line,) = [line for line in manual.splitlines() if line.startswith("| `OKOME_NATS_URL` |")]
    for command in (("keys", "ls"), ("drain", "node"), ("route",)):
        assert "OKOME_NATS_URL" in okome(*command, "--help", home=tmp_path).stdout
        assert f"`{command[0]}`" in line
    assert "OKOME_NATS_URL" not in okome("chat", "--help", home=tmp_path).stdout


def test_help_imports_nothing_that_a_command_would_need(tmp_path: Path) -> None:
    """Which is what makes it quick on any machine: a clock would measure the machine."""
    heavy = ("nats", "httpx", "pydantic", "msgspec", "uvicorn", "structlog")
    code = f"import sys, compose.cli.main; print([name for name in {heavy} if name in sys.modules])"
    told = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize("command", NOT_BUILT)
def test_what_is_not_built_says_so_and_fails(command: str, tmp_path: Path) -> None:
    told = okome(command, "--some-flag", "thing", home=tmp_path)
    assert told.returncode == 1
    assert told.stderr == f"okome: {command} is not built yet\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("up", "--nodes", "many"),
        ("up", "--nats", "2"),
        ("up", "--engine", "abacus", "--port", "0"),
        ("up", "--tls-cert", "x.pem"),
        ("role", "cook"),
        ("tail",),
        ("chat", "-o", "json"),
        ("models", "-o", "xml"),
        ("chaos", "--duration", "inf"),
        ("chaos", "--duration", "nan"),
        ("chaos", "soak", "--minutes", "inf"),
    ],
)
def test_misuse_is_exit_code_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    told = okome(*arguments, home=tmp_path)
    assert told.returncode == 2, told.stderr
    assert told.stderr
    assert "Traceback" not in told.stderr


WRITERS = [
    ("chaos", "--report"),
    ("chaos", "merge", "run", "--report"),
    ("chaos", "exactness", "--write"),
    ("chaos", "soak", "--write"),
    ("bench", "relay", "--only", "okome", "--report"),
    ("bench", "first", "--only", "okome", "--report"),
    ("bench", "resume", "--report"),
    ("up", "--engine", "scripted", "--port", "0", "--data"),
]


@pytest.mark.parametrize("arguments", WRITERS, ids=" ".join)
def test_a_place_that_cannot_be_written_to_is_named_before_anything_is_done(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    taken = tmp_path / "file"
    taken.write_text("somebody's")
    nowhere = taken / "place"  # below a file: root cannot either
    for place in (nowhere, tmp_path if arguments[-1] == "--write" else taken):
        told = okome(*arguments, str(place), home=tmp_path)
        assert told.returncode == 2, told.stderr
        (said,) = told.stderr.strip().splitlines()
        assert f"{arguments[-1]} {place}: " in said
    assert taken.read_text() == "somebody's"


def test_scenarios_that_a_running_system_cannot_play_are_refused_with_the_reason(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    ready.write_text("{}")
    report = tmp_path / "report"
    told = okome("chaos", "--target", str(ready), "--scenario", "disk-full", "--report", str(report), home=tmp_path)
    assert told.returncode == 2
    assert "disk-full with --target: it needs a system of its own: one NATS server on a small disk" in told.stderr
    assert not report.exists()


@pytest.mark.parametrize(
    "arguments", [("models",), ("tail", "00abcdefgh"), ("chat", "--once", "hi"), ("keys", "ls"), ("drain", "node", "n")]
)
def test_without_a_system_they_say_how_to_get_one(arguments: tuple[str, ...], tmp_path: Path) -> None:
    told = okome(*arguments, home=tmp_path)
    assert told.returncode == 1
    assert "okome up" in told.stderr


def test_a_system_that_does_not_answer_is_a_sentence_and_not_a_stack_trace(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        told = okome("models", "--url", url, home=tmp_path, OKOME_API_KEY="ok_whatever")
    assert told.returncode == 1
    assert told.stderr.startswith(f"okome: {url} does not answer")
    assert "Traceback" not in told.stderr


def test_what_is_logged_on_the_way_does_not_mix_with_the_answer(tmp_path: Path) -> None:
    """A program reads stdout; one NATS server of several that is away is no part of any answer."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        told = okome("keys", "ls", "-o", "json", home=tmp_path, OKOME_NATS_URL=url)
    assert told.returncode == 1
    assert told.stdout == ""
    assert "no NATS server answers" in told.stderr


@pytest.mark.parametrize(("engine", "instead"), [("vllm", ":8000/v1"), ("ollama", ":11434/v1"), ("tensorflow", "")])
def test_an_engine_that_is_not_there_cannot_start_and_what_does_instead_is_said(
    engine: str, instead: str, tmp_path: Path
) -> None:
    told = okome("up", "--engine", engine, "--port", "0", home=tmp_path)
    assert told.returncode == 3
    assert "is not built yet" in told.stderr
    if instead:
        assert f"--engine openai with OKOME_WORKER_OPENAI_URL=http://127.0.0.1{instead}" in told.stderr


def test_a_busy_port_is_a_clear_error_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        began = time.monotonic()
        told = okome("up", "--engine", "scripted", "--port", str(port), home=tmp_path)
    assert told.returncode == 3
    assert f"127.0.0.1:{port} is in use" in told.stderr
    assert time.monotonic() - began < TIMEOUT / 2, "nothing was started for it"


def test_a_ready_file_that_cannot_be_written_is_said_before_anything_starts(tmp_path: Path) -> None:
    told = okome("up", "--engine", "scripted", "--ready-file", str(tmp_path / "none" / "ready.json"), home=tmp_path)
    assert told.returncode == 2
    assert "its folder does not exist" in told.stderr


def test_a_certificate_or_key_that_cannot_serve_is_named_before_anything_is_started(tmp_path: Path) -> None:
    ours, other, junk = make_ca(tmp_path / "ours"), make_ca(tmp_path / "other"), tmp_path / "junk.pem"
    junk.write_text("no PEM")
    data = tmp_path / "data"
    for cert, key, flag in ((ours.cert, other.key, "--tls-key"), (junk, ours.key, "--tls-cert")):
        files = ("--tls-cert", str(cert), "--tls-key", str(key))
        told = okome("up", "--engine", "scripted", "--port", "0", "--data", str(data), *files, home=tmp_path)
        assert told.returncode == 2
        assert f"{flag} {key if flag == '--tls-key' else cert}: " in told.stderr
        assert list((data / "logs").iterdir()) == []


def test_a_host_that_is_not_this_machine_is_named(tmp_path: Path) -> None:
    told = okome("up", "--engine", "scripted", "--host", "192.0.2.1", "--port", "0", home=tmp_path)
    assert told.returncode == 3
    assert "cannot listen on 192.0.2.1:0" in told.stderr


@pytest.mark.parametrize(("kind", "name"), [("node", ">"), ("node", "a.b"), ("worker", "*"), ("worker", "")])
def test_what_names_everybody_is_no_name(kind: str, name: str, tmp_path: Path) -> None:
    """As part of a subject it would find somebody, drain nobody and say nothing."""
    told = okome("drain", kind, name, home=tmp_path, OKOME_NATS_URL="nats://127.0.0.1:1")
    assert told.returncode == 1
    assert "is no name of a node or worker" in told.stderr


def test_wrong_settings_of_all_roles_are_named_before_anything_is_started(tmp_path: Path) -> None:
    data = tmp_path / "data"
    wrong = {
        "OKOME_NODE_RING_FRAMES": "abc",
        "OKOME_INGRESS_BODY_LIMIT": "x",
        "OKOME_WORKER_SLOTS": "q",
        "OKOME_CONTROL_PARTITIONS": "z",
    }
    told = okome("up", "--engine", "scripted", "--port", "0", "--data", str(data), home=tmp_path, **wrong)
    assert told.returncode == 2
    assert sorted(line.split(": ")[1] for line in told.stderr.splitlines()) == sorted(wrong)
    assert list((data / "logs").iterdir()) == []


def test_what_okome_up_sets_itself_cannot_be_set_wrong_and_is_said_with_what_sets_it(tmp_path: Path) -> None:
    sets = {"OKOME_NODE_PORT": "99999", "OKOME_NODE_ID": "a b", "OKOME_CONTROL_REPLICAS": "3"}
    wrong = {"OKOME_NODE_RING_FRAMES": "1"}  # which keeps anything from starting
    told = okome("up", "--port", "0", home=tmp_path, **sets, **wrong)
    assert told.returncode == 2
    *warned, refused = told.stderr.splitlines()
    assert refused.split(": ")[1] == "OKOME_NODE_RING_FRAMES"
    does_not = "does not count: `okome up` sets it itself"
    assert sorted(warned) == [
        f"OKOME_CONTROL_REPLICAS {does_not}, by --nats",
        f"OKOME_NODE_ID {does_not}",
        f"OKOME_NODE_PORT {does_not}",
    ]
    theirs = okome("up", "--port", "0", "--nats-url", "nats://theirs", home=tmp_path, **sets, **wrong)
    assert "OKOME_CONTROL_REPLICAS" not in theirs.stderr
    same = okome("up", "--port", "0", "--nats", "3", home=tmp_path, OKOME_CONTROL_REPLICAS="3", **wrong)
    assert "OKOME_CONTROL_REPLICAS" not in same.stderr


def test_a_variable_that_no_role_reads_is_said_with_the_nearest_one(tmp_path: Path) -> None:
    env = {"OKOME_NODE_RING_FRAME": "9", "OKOME_NODE_RING_FRAMES": "1"}  # the second keeps anything from starting
    for command in (("up", "--port", "0"), ("doctor",)):
        told = okome(*command, home=tmp_path, **env)
        assert told.returncode == 2
        said = (told.stdout + told.stderr).replace("\t", " ")
        assert "OKOME_NODE_RING_FRAME is no setting; the nearest is OKOME_NODE_RING_FRAMES\n" in said
        assert "OKOME_NODE_RING_FRAMES is no setting" not in said


def test_a_key_that_cannot_be_one_cannot_start(tmp_path: Path) -> None:
    told = okome("up", "--engine", "scripted", "--port", "0", home=tmp_path, OKOME_API_KEY="pass word")
    assert told.returncode == 3
    assert "not an API key" in told.stderr
    assert "pass word" not in told.stderr


@pytest.mark.parametrize("holds", [b"", b"\n", b"short", b"\xff\xfe" * 16])
def test_a_file_without_a_key_is_refused_and_not_taken_for_none(holds: bytes, tmp_path: Path) -> None:
    """Another key would be made, or the environment's used."""
    file = tmp_path / "key"
    file.write_bytes(holds)
    flags = ("--port", "0", "--api-key-file", str(file), "--data", str(tmp_path / "data"))
    told = okome("up", "--engine", "scripted", *flags, home=tmp_path, OKOME_API_KEY="ok_somebody-elses-key")
    assert told.returncode == 3
    assert told.stderr.startswith(f"okome: --api-key-file {file} is not an API key: ")
    assert not (tmp_path / "data").exists()


def test_the_doctor_names_every_wrong_setting_of_every_role_at_once(tmp_path: Path) -> None:
    told = okome(
        "doctor",
        "-o",
        "json",
        home=tmp_path,
        OKOME_NODE_RING_FRAMES="none",
        OKOME_WORKER_THREADS="-1",
        OKOME_CONTROL_PORT="99999",
    )
    assert told.returncode == 2
    report = json.loads(told.stdout)
    assert sorted(report["mistakes"]) == ["OKOME_CONTROL_PORT", "OKOME_NODE_RING_FRAMES", "OKOME_WORKER_THREADS"]


def test_the_doctor_says_what_a_node_may_come_to_hold_and_whether_it_is_there(tmp_path: Path) -> None:
    few = okome("doctor", home=tmp_path, OKOME_NODE_MAX_SUBSCRIBERS="1024")
    line = next(line for line in few.stdout.splitlines() if "memory of a node" in line)
    assert line.startswith("ok")
    assert "1024 streams 24 MiB, rings of 4 partitions at one NATS server 128 MiB" in line
    more = okome("doctor", home=tmp_path, OKOME_CONTROL_PARTITIONS="32")
    assert "rings of 32 partitions at one NATS server 512 MiB" in more.stdout
    many = okome("doctor", home=tmp_path, OKOME_NODE_MAX_SUBSCRIBERS="100000000")
    assert "warn\tmemory of a node" in many.stdout


def test_the_doctor_shows_effective_settings_and_never_a_secret(tmp_path: Path) -> None:
    told = okome(
        "doctor",
        home=tmp_path,
        OKOME_NODE_NATS_PASSWORD="open-sesame",
        OKOME_NODE_NATS_URL="nats://me:open-sesame@127.0.0.1:4222",
        OKOME_NODE_HEARTBEAT_INTERVAL="7",
    )
    assert told.returncode == 0, told.stdout
    assert "OKOME_NODE_HEARTBEAT_INTERVAL=7.0\n" in told.stdout
    assert "OKOME_NODE_NATS_PASSWORD=********\n" in told.stdout
    assert "open-sesame" not in told.stdout
    checked = {line.split("\t")[1] for line in told.stdout.splitlines() if "\t" in line}
    assert {"python", "nats-server", "valkey", "engine", "open files", "port 8080", "system"} <= checked


def test_the_doctor_looks_at_nats_servers_that_it_is_told_of_where_no_system_is_known(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"nats://127.0.0.1:{server.getsockname()[1]}"
        well = okome("doctor", home=tmp_path, OKOME_NATS_URL=url)
    assert f"ok\tnats\t{url} answers\n" in well.stdout
    gone = okome("doctor", home=tmp_path, OKOME_NATS_URL=url)
    assert gone.returncode == 1
    assert f"bad\tnats\t{url.removeprefix('nats://')} Connection refused\n" in gone.stdout


@pytest.mark.parametrize("url", ["http://[::1", "http://h:abc"])
def test_what_is_no_address_is_said_and_not_a_stack_trace(url: str, tmp_path: Path) -> None:
    for command in (("models",), ("chat", "--once", "hi"), ("tail", "s")):
        told = okome(*command, "--url", url, home=tmp_path, OKOME_API_KEY="ok_whatever")
        assert told.returncode == 2
        assert told.stderr.startswith(f"okome: {url} is no address: ")
    examined = okome("doctor", "--url", url, home=tmp_path, OKOME_API_KEY="ok_whatever")
    assert examined.returncode == 1
    assert f"bad\tsystem\t{url} does not answer: " in examined.stdout
    assert "Traceback" not in examined.stderr


def test_the_doctor_finds_nobody_at_a_name_that_cannot_be_looked_up(tmp_path: Path) -> None:
    examined = okome("doctor", "--url", "http://a..b", home=tmp_path, OKOME_API_KEY="ok_whatever")
    assert examined.returncode == 1
    assert "bad\tsystem\thttp://a..b does not answer: " in examined.stdout


@pytest.mark.parametrize("url", ["nats://me:open-sesame@h:abc", "nats://me:open-sesame@[::1", "nonsense:x", ",", " "])
def test_what_is_no_address_of_a_nats_server_is_said_without_its_password(url: str, tmp_path: Path) -> None:
    told = okome("keys", "ls", home=tmp_path, OKOME_NATS_URL=url)
    assert told.returncode == 2
    assert told.stderr.startswith("okome: OKOME_NATS_URL: ")
    assert len(told.stderr.splitlines()) == 1
    examined = okome("doctor", home=tmp_path, OKOME_NATS_URL=url, OKOME_NODE_NATS_URL=url)
    assert examined.returncode == 2
    assert "bad\tnats\tOKOME_NATS_URL: " in examined.stdout
    assert "bad\tOKOME_NODE_NATS_URL\t" in examined.stdout
    assert "open-sesame" not in told.stderr + examined.stdout + examined.stderr


ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


def test_what_a_terminal_cannot_write_does_not_end_a_command(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "compose.cli.main", "doctor"],
        env={**os.environ, **ASCII, "XDG_STATE_HOME": str(tmp_path), "NO_COLOR": "1"},
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # which says that nobody writes there any more
        while read := os.read(ours, 4096):
            shown += read
    os.close(ours)
    _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode in (0, 1), said
    assert shown.startswith(b"? ")
    assert b"python" in shown


def test_what_a_program_reads_is_the_same_where_only_ascii_can_be_written(tmp_path: Path) -> None:
    told = okome("doctor", "-o", "json", home=tmp_path, OKOME_NODE_CORS_ORIGINS="http://ü", PYTHONIOENCODING="ascii")
    assert '"http://\\u00fc"' in told.stdout


def test_a_role_with_wrong_settings_names_them_all(tmp_path: Path) -> None:
    told = okome("role", "worker", home=tmp_path, OKOME_WORKER_THREADS="-1", OKOME_WORKER_SLOTS="x")
    assert told.returncode == 2
    assert "OKOME_WORKER_THREADS" in told.stderr
    assert "OKOME_WORKER_SLOTS" in told.stderr

"""What a measurement needs of the machine before it begins."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import cli, relay
from bench.record import Shape


@pytest.fixture
def few_files() -> Iterator[int]:
    """The default of many machines: few files, and many more for whoever asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield 512
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_peers_may_open_as_many_files_as_okome(few_files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started inherits the limit of whoever starts it."""
    limits = []

    async def measure(*_: object) -> None:
        limits.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    monkeypatch.setattr(relay, "measure", measure)
    cli.measure(["10x20"], ["haproxy"], 1, 1.0, tmp_path / "report")
    assert limits[0] > few_files


def test_a_shape_with_more_viewers_than_files_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "raise_file_limit", lambda: None)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    cli.open_files([Shape(400, 20.0)])
    with pytest.raises(cli.WrongUse, match=r"400 × 20/s × 2 viewers: needs 1800 open files, and 1024 are allowed"):
        cli.measure(["400x20x2"], ["haproxy"], 1, 1.0, tmp_path / "report")
    assert not (tmp_path / "report").exists()

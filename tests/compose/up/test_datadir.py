"""The directory a system lives in."""

import errno
import os
import re
import stat
import tempfile
from pathlib import Path

import pytest

from compose.up.datadir import DataDir, DirectoryBusy, KeyInvalid, sweep
from compose.up.options import OptionsInvalid
from compose.up.ports import Ports
from compose.up.servers import nats


def test_a_made_key_is_kept_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    with DataDir(tmp_path / "d") as data:
        key, made = data.api_key()
        assert made
        assert re.fullmatch(r"ok_[0-9a-z]{40}", key)
        assert stat.S_IMODE(data.key_file.stat().st_mode) == 0o600
    with DataDir(tmp_path / "d") as data:
        assert data.api_key() == (key, False)


def test_a_given_key_is_used_and_not_kept(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data:
        assert data.api_key("ok_given-by-somebody\n") == ("ok_given-by-somebody", False)
        assert not data.key_file.exists()


@pytest.mark.parametrize("key", ["short", "two words of some length", "ok_ümläuts-are-not-for-headers"])
def test_what_cannot_be_a_key_is_refused(tmp_path: Path, key: str) -> None:
    with DataDir(tmp_path) as data, pytest.raises(KeyInvalid):
        data.api_key(key)


def test_a_second_system_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with DataDir(tmp_path), pytest.raises(DirectoryBusy, match="in use by another `okome up`"):
        DataDir(tmp_path)
    DataDir(tmp_path).close()


def test_a_directory_that_nobody_named_is_gone_at_the_end() -> None:
    with DataDir(None) as data:
        path = data.path
        data.place("nats-1").joinpath("block").write_text("x")
    assert not path.exists()
    data.close()


def test_a_named_directory_stays(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data:
        data.place("nats-1").joinpath("block").write_text("x")
    assert (tmp_path / "nats-1" / "block").read_text() == "x"


def served(data: DataDir, servers: int) -> None:
    """As many NATS servers have run here."""
    for number in range(1, servers + 1):
        data.place(f"nats-{number}").joinpath("jetstream").mkdir()


@pytest.mark.parametrize(("first", "then"), [(1, 3), (3, 1)])
def test_logs_are_opened_only_by_as_many_servers_as_have_laid_them(tmp_path: Path, first: int, then: int) -> None:
    with DataDir(tmp_path) as data, Ports() as ports:
        nats(first, data, ports)
        served(data, first)
        refused = rf"--nats {then}: {data.path} has the logs of --nats {first}; start it with --nats {first}"
        with pytest.raises(OptionsInvalid, match=refused):
            nats(then, data, ports)
        assert len(nats(first, data, ports)[0]) == first


@pytest.mark.parametrize(("first", "then"), [(1, 3), (3, 1)])
def test_logs_that_are_older_than_the_word_of_it_are_known_by_their_places(
    tmp_path: Path, first: int, then: int
) -> None:
    with DataDir(tmp_path) as data, Ports() as ports:
        served(data, first)
        with pytest.raises(OptionsInvalid, match=f"start it with --nats {first}"):
            nats(then, data, ports)
        assert len(nats(first, data, ports)[0]) == first


def test_a_first_start_that_came_to_nothing_binds_nobody(tmp_path: Path) -> None:
    with DataDir(tmp_path) as data, Ports() as ports:
        nats(3, data, ports)
        assert len(nats(1, data, ports)[0]) == 1
        served(data, 1)
        assert data.nats_servers(3) == 1


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where directories that nobody named are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def killed(data: DataDir) -> Path:
    """Its process is gone, and could put nothing away."""
    assert data._lock is not None
    data._lock.close()
    return data.path


def test_what_a_killed_system_left_is_removed_and_what_runs_is_not(temporary: Path) -> None:
    left = killed(DataDir(None))
    with DataDir(None) as running:
        assert sweep() == [left]
        assert not left.exists()
        assert running.logs.is_dir()


def test_nothing_is_removed_that_somebody_named_or_that_is_not_ours(temporary: Path) -> None:
    named = killed(DataDir(temporary / "okome-mine"))
    rescued = killed(DataDir(killed(DataDir(None))))
    (temporary / "okome-of-another-program").mkdir()
    about_to_start = temporary / "okome-new"
    about_to_start.mkdir()
    for name in ("temporary", "lock"):
        (about_to_start / name).touch()
    (temporary / "okome-link").symlink_to(killed(DataDir(temporary / "elsewhere")))
    assert sweep() == []
    assert named.is_dir()
    assert rescued.is_dir()


def test_what_is_another_users_or_goes_meanwhile_keeps_nobody_from_starting(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, gone = temporary / "okome-theirs", temporary / "okome-gone"
    left = killed(DataDir(None))
    theirs.mkdir()
    gone.mkdir()
    if os.geteuid() == 0:
        os.chown(theirs, 65534, 65534)
    is_file = Path.is_file

    def look(path: Path) -> bool:
        """As the kernel has it for whoever is not root."""
        if path.parent == theirs:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        if path.parent == gone:
            gone.rmdir()
            return True
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", look)
    assert sweep() == [left]
    assert theirs.is_dir()
    assert not gone.exists()

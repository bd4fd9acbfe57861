"""A disk that is full, or becomes read-only: what was done stays whole, why the rest failed is said, and it goes on."""

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator

import pytest
from sweep_helpers import KILLS, LIMITS, Sweeps, count, place, sweeps, undisturbed

from anchorlens import store
from anchorlens.sweep import Events, status

__all__ = ["place", "sweeps", "undisturbed"]  # fixtures
PAGE = 4096
FILL = """
if limit > 1:
    with open({ballast!r}, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    os.truncate({ballast!r}, os.stat({ballast!r}).st_size - {left} * (limit == 2))
"""
ROOM = [0, 1] if KILLS == 3 else range(8)  # pages; each lets a run come further


@pytest.fixture
def small_disk(sweeps) -> Iterator[Sweeps]:
    """Sweeps into a file system of a megabyte."""
    sweeps.store.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", sweeps.store], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.decode().strip()}")
    yield sweeps
    subprocess.run(["umount", "--lazy", sweeps.store], check=True)


def are_whole(sweeps: Sweeps) -> int:
    """Whatever bears the name of a result is one; how many there are."""
    found = [store.Run(path) for path in sweeps.store.glob("small/*") if "." not in path.name]
    assert [store.damage(run) for run in found] == [""] * len(found)
    return len(found)


@pytest.mark.parametrize("pages", ROOM)
def test_a_disk_that_becomes_full_loses_nothing_and_is_said(undisturbed, small_disk, pages):
    ballast = small_disk.store / "ballast"
    small_disk.trouble.write_text(FILL.format(ballast=str(ballast), left=pages * PAGE))
    code, events = small_disk.run("--fail-fast")
    said = small_disk.said.read_text()
    assert (code, count(events, "failed")) == (1, 1), said
    (error,) = [event["error"] for event in events if event["event"] == "failed"]
    assert "No space left on device" in error
    assert str(small_disk.store) in error
    assert "--store" in error
    assert are_whole(small_disk) == count(events, "done") >= 1
    small_disk.is_clean()
    ballast.unlink()
    small_disk.trouble.unlink()
    small_disk.is_as(undisturbed.tables(), cached=count(events, "done"))


def test_events_for_which_there_is_no_room_are_written_when_there_is(tmp_path, capsys):
    with Events(tmp_path, 2, as_json=True) as told:
        whole = told.path.read_bytes()
        told.path.unlink()
        told.path.symlink_to("/dev/full")
        told.say("started", job="a")
        told.say("done", job="a")
        said = capsys.readouterr().err
        assert said.count("cannot be written (No space left on device)") == 1, "once, not for each event"
        assert str(told.path) in said
        told.path.unlink()
        told.path.write_bytes(whole)
        told.say("finished")
    assert [json.loads(line)["event"] for line in told.path.read_text().splitlines()] == [
        "begin",
        "started",
        "done",
        "finished",
    ]
    assert capsys.readouterr().err == ""
    assert status(tmp_path)["done"] == 1


def test_events_that_are_never_written_are_counted_at_the_end(tmp_path, capsys):
    with Events(tmp_path, 2, as_json=True) as told:
        told.path.unlink()
        told.path.symlink_to("/dev/full")
        told.say("started", job="a")
        told.say("finished")
    assert "its last 2 events are only in what was printed" in capsys.readouterr().err


CLOSE = """
if limit == 2:
    (Path(folder){above}).chmod(0o500)
"""


def no_privileges() -> None:
    """Have root, too, ask the permissions of files: without CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER."""
    if os.geteuid() == 0:
        for capability in (1, 2, 3):
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


def test_a_store_that_is_read_only_is_said_before_anything_starts(sweeps):
    sweeps.begin = no_privileges
    sweeps.store.mkdir(mode=0o500)
    code, events = sweeps.run()
    assert code != 0
    assert "nothing was started" in events[-1]["error"]
    assert sweeps.store.name in sweeps.said.read_text()
    sweeps.is_clean()


@pytest.mark.parametrize("above", ["", ".parent"], ids=["the run's", "the notebook's"])
def test_a_folder_that_becomes_read_only_loses_nothing_and_is_said(undisturbed, sweeps, above):
    sweeps.begin = no_privileges
    sweeps.trouble.write_text(CLOSE.format(above=above))
    code, events = sweeps.run()
    errors = [event["error"] for event in events if event["event"] == "failed"]
    assert (code, len(errors)) == (1, 2 if above else 1), sweeps.said.read_text()
    for error in errors:
        assert "Permission denied" in error
        assert str(sweeps.store) in error
    assert are_whole(sweeps) == count(events, "done") == len(LIMITS) - len(errors)
    sweeps.is_clean()
    for folder in [sweeps.store / "small", *(sweeps.store / "small").iterdir()]:
        folder.chmod(0o700)
    sweeps.trouble.unlink()
    sweeps.is_as(undisturbed.tables(), cached=count(events, "done"))

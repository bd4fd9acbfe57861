"""A run's folder is whole or not there: checked tables, the manifest last, one result of two runners."""

import errno
import math
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from anchorlens import claims, store
from anchorlens.store import Run, StoreError

COLUMNS = {"example": "int64", "flow": "str", "value": "float64"}
FRAME = pd.DataFrame({"example": [0, 1], "flow": pd.Series(["S_wp", "S_pq"], dtype="str"), "value": [0.25, -1.5]})


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "store" / "2_1" / "abc")


def finished(run: Run, frame: pd.DataFrame = FRAME, **manifest: object) -> Path:
    """Write a whole run."""
    with store.claiming(run):
        run.write(frame, COLUMNS)
        return run.finish(manifest)


def test_a_run_is_read_as_it_was_written(run):
    folder = finished(run, key="abc", seconds=1.5)
    pd.testing.assert_frame_equal(store.read(folder), FRAME)
    assert store.manifest(folder) == {"schema": store.SCHEMA, "key": "abc", "seconds": 1.5}
    assert run.whole
    assert folder == run.final
    assert [path.name for path in folder.parent.iterdir()] == ["abc"], "nothing else is left"


def test_a_further_table_lies_beside_the_results(run):
    with store.claiming(run):
        run.write(FRAME, COLUMNS)
        run.write(FRAME[["value"]], {"value": "float64"}, "twin")
        folder = run.finish({})
    assert list(store.read(folder, "twin")) == ["value"]
    with pytest.raises(StoreError, match=r"has no table 'losses'; it has results, twin\."):
        store.read(folder, "losses")


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (FRAME.assign(more=1), r"not declared \['more'\]"),
        (FRAME.rename(columns={"value": "valve"}), r"missing \['value'\], not declared \['valve'\]"),
        (FRAME.assign(value=[1, 2]), r"wrong type \['value: int64, not float64'\]"),
        (FRAME.assign(flow=[1, 2]), r"wrong type \['flow: int64, not str'\]"),
        (FRAME.iloc[:0], "0 rows"),
    ],
)
def test_a_table_that_is_not_as_declared_is_refused_and_nothing_is_finished(run, frame, said):
    with store.claiming(run):
        with pytest.raises(StoreError, match=f"table 'results' does not match the COLUMNS of its analysis.*{said}"):
            run.write(frame, COLUMNS)
        with pytest.raises(StoreError, match=r"no results\.parquet was written"):
            run.finish({})
    assert not run.whole
    assert not run.final.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, b"x"], ids=str)
def test_a_manifest_that_is_not_strict_json_is_refused_and_never_written(run, value):
    with store.claiming(run):
        run.write(FRAME, COLUMNS)
        with pytest.raises(StoreError, match=r"manifest of abc: not strict JSON"):
            run.finish({"seconds": value})
    assert not run.final.exists()
    assert not (run.partial / "manifest.json").exists()


def test_a_table_that_cannot_be_written_leaves_no_manifest(run, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with store.claiming(run):
        run.write(FRAME, COLUMNS)
        monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
        with pytest.raises(StoreError, match=r"cannot be written.*No space left on device.*with room left") as refused:
            run.write(FRAME, COLUMNS, "twin")
    assert str(run.final.parent) in str(refused.value)
    assert [path.name for path in run.partial.iterdir()] == ["results.parquet"]
    assert not run.whole


def test_every_file_is_on_the_disk_before_the_folder_is_put_in_place(run, monkeypatch):
    synced: set[int] = set()

    def sync(handle: int) -> None:
        if not run.final.exists():
            synced.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", sync)
    folder = finished(run)
    assert synced >= {path.stat().st_ino for path in [folder, *folder.iterdir()]}


def test_a_disk_that_fails_at_the_end_leaves_nothing_under_the_key(run, monkeypatch):
    def failing(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreError, match="Input/output error"):
        finished(run)
    assert not run.final.exists()


def test_the_manifest_is_the_last_file_that_is_written(run, monkeypatch):
    seen, write_text = {}, Path.write_text

    def watched(path: Path, *args, **kwargs):
        seen[path.name] = sorted(each.name for each in run.partial.iterdir()), run.final.exists()
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", watched)
    finished(run)
    assert seen == {"manifest.json": (["results.parquet"], False)}


def test_a_new_result_takes_the_place_of_an_older_one(run):
    with store.claiming(run):
        run.write(FRAME, COLUMNS)
        run.write(FRAME, COLUMNS, "twin")
        run.finish({"time": 1})
    folder = finished(run, FRAME.head(1), time=2)
    assert store.manifest(folder)["time"] == 2
    assert len(store.read(folder)) == 1
    assert not (folder / "twin.parquet").exists()


def test_what_lies_under_the_key_is_whole_even_if_replacing_it_fails_half_way(run, monkeypatch):
    finished(run)

    def dying(folder: Path, *args: object, **kwargs: object) -> None:
        (Path(folder) / "results.parquet").unlink()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store.shutil, "rmtree", dying)
    with suppress(StoreError):
        finished(run)
    assert not run.whole or len(store.read(run.final)) == len(FRAME)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00\x01", b"PAR1"], ids=str)
def test_a_folder_without_a_readable_manifest_is_no_finished_run(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    for read in (store.read, store.manifest):
        with pytest.raises(StoreError, match=f"{tmp_path} is not a finished run: its manifest.json cannot be read"):
            read(tmp_path)


def test_a_run_that_is_still_going_on_is_no_finished_run(run):
    with store.claiming(run):
        run.write(FRAME, COLUMNS)
        for folder in (run.partial, run.final):
            with pytest.raises(StoreError, match="is not a finished run"):
                store.read(folder)


def test_a_store_below_a_file_is_refused_with_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    run = Run(tmp_path / "file" / "2_1" / "abc")
    with pytest.raises(StoreError) as refused, store.claiming(run):
        pass
    assert f"output folder {tmp_path / 'file' / '2_1'}: cannot be written (Not a directory" in str(refused.value)
    assert "Give a folder that you may write to, with room left, as --store" in str(refused.value)


def test_what_an_error_left_can_be_looked_at_until_the_run_is_claimed_again(run):
    def failing() -> None:
        with store.claiming(run):
            run.write(FRAME, COLUMNS)
            (run.partial / "more").mkdir()
            (run.partial / "more" / "log.txt").write_text("so far")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert sorted(path.name for path in run.partial.iterdir()) == ["more", "results.parquet"]
    with store.claiming(run):
        assert list(run.partial.iterdir()) == []
    assert not run.partial.exists(), "an unused claim leaves nothing"


@pytest.mark.parametrize("resume", [True, False])
def test_only_parts_stay_and_only_where_a_run_goes_on(run, resume):
    with store.claiming(run):
        part = run.write_part(FRAME, COLUMNS, "results", 0, of=2)
        run.write_part(FRAME, COLUMNS, "results", 1, of=2, whole=False)
        run.write(FRAME, COLUMNS)
    with store.claiming(run, resume=resume):
        assert list(run.partial.iterdir()) == ([part] if resume else [])


def test_a_key_depends_on_content_and_not_on_order():
    assert store.key({"a": 1, "b": [1.5, "x"]}) == store.key({"b": [1.5, "x"], "a": 1})
    assert store.key({"a": 1}) != store.key({"a": 2})
    assert len(store.key({"a": 1})) == 16
    with pytest.raises(ValueError, match="JSON"):
        store.key({"a": math.nan})


RUNNER = """
import sys
from pathlib import Path
import pandas as pd
from anchorlens import claims, store

final, name, log = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
run = store.Run(final)
print("ready", flush=True)

def note(word):
    with log.open("a") as file:
        file.write(f"{name} {word}\\n")
    print(word, flush=True)

with store.claiming(run):
    if run.whole:
        note("found it whole")
    else:
        assert list(run.partial.iterdir()) == []
        run.write(pd.DataFrame({"value": [1.0]}), {"value": "float64"})
        note("began")
        sys.stdin.readline()  # goes on when it is told to
        note("ended")
        run.finish({"by": name})
"""


AS_NFS = "import fcntl\nfcntl.flock = fcntl.lockf\n"  # which it makes of it: for files only, open for writing


@pytest.fixture(params=["", AS_NFS], ids=["here", "as NFS"])
def locks(request) -> str:
    """Code that gives a process the locks of a file system."""
    return request.param


@pytest.fixture
def runner(run, tmp_path, locks):
    """A function that starts a process which claims ``run``, says so, and waits for a line before it finishes."""
    started = []

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-c", locks + RUNNER, str(run.final), name, str(tmp_path / "log.txt")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert said(process) == "ready"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=60)


def said(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes_with_one_key_run_one_after_the_other_and_leave_one_result(run, runner, tmp_path):
    first = runner("first")
    assert said(first) == "began"
    second = runner("second")
    time.sleep(0.3)  # the second has every chance to barge in
    first.communicate("go on\n", timeout=60)
    second.communicate("", timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert (tmp_path / "log.txt").read_text() == "first began\nfirst ended\nsecond found it whole\n"
    assert [path.name for path in run.final.parent.iterdir()] == ["abc"]
    assert store.manifest(run.final)["by"] == "first"
    assert len(store.read(run.final)) == 1


def test_whoever_ends_leaves_the_folder_of_the_next_owner_alone(run):
    with store.claiming(run):
        run.write(FRAME, COLUMNS)
        run.finish({})
        run.partial.mkdir()  # another has found no result, just before, and begins
    assert run.partial.is_dir()


def test_a_file_system_without_locks_is_refused_with_the_remedy(run, monkeypatch):
    def none(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(claims.fcntl, "flock", none)
    before = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(StoreError, match=r"No locks available.*Give a folder"), store.claiming(run):
        pass
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_killed_process_leaves_a_partial_folder_that_the_next_one_empties(run, runner):
    first = runner("first")
    assert said(first) == "began"
    (run.partial / "left over.txt").write_text("by the first")
    second = runner("second")
    first.kill()
    assert said(second) == "began", "the second found files of the first"
    assert not run.whole
    second.communicate("go on\n", timeout=60)
    assert second.returncode == 0
    assert sorted(path.name for path in run.final.iterdir()) == ["manifest.json", "results.parquet"]
    assert store.manifest(run.final)["by"] == "second"


CONTENDER = """
import os, sys
from pathlib import Path
import pandas as pd
from anchorlens import store

final, sole = Path(sys.argv[1]), Path(sys.argv[2])
run = store.Run(final)
for n in range(15):
    with store.claiming(run, resume=n % 2 == 0):
        os.close(os.open(sole, os.O_CREAT | os.O_EXCL))  # fails if another is in this block
        run.write_part(pd.DataFrame({"value": [1.0]}), {"value": "float64"}, "results", 0, of=1)
        if n % 3:
            run.write(run.read_part("results", 0), {"value": "float64"})
            run.finish({"by": os.getpid()})
            if n % 3 == 2:
                run.set_aside()
        sole.unlink()
    run.leave("note.txt", "by nobody")
    run.tidy()
"""


def test_of_many_processes_one_at_a_time_owns_a_run(run, tmp_path, locks):
    command = [sys.executable, "-c", locks + CONTENDER, str(run.final), str(tmp_path / "sole")]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, said
    assert [path.name for path in tmp_path.glob("store/.locks/*/*")] == ["abc"], "one file for a key"
    assert not run.whole or store.damage(run) == ""


def test_whoever_has_to_wait_is_told_and_may_leave_instead(run):
    def leave() -> None:
        raise InterruptedError

    with store.claiming(run, waits=leave):
        before = len(list(Path("/dev/fd").iterdir()))
        with pytest.raises(InterruptedError), store.claiming(run, waits=leave):
            pass
        assert len(list(Path("/dev/fd").iterdir())) == before
        run.leave("note.txt", "somebody else's")
        run.tidy()
        assert list(run.partial.iterdir()) == []
    with store.claiming(run, waits=leave):
        pass


def test_to_look_after_a_finished_run_makes_no_lock(run):
    finished(run)
    shutil.rmtree(run.final.parents[1] / ".locks")
    run.tidy()
    assert not (run.final.parents[1] / ".locks").exists()


def test_nothing_is_left_beside_a_run_that_was_done_meanwhile(run):
    finished(run)
    run.leave("note.txt", "died after it was done")
    assert [path.name for path in run.final.parent.iterdir()] == ["abc"]


def test_a_fork_that_outlives_its_owner_does_not_keep_the_run(run):
    def leave() -> None:
        raise AssertionError("it is kept")

    with store.claiming(run):
        forked = os.fork()
        if forked == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with store.claiming(run, waits=leave):
            pass
    finally:
        os.kill(forked, 9)
        os.waitpid(forked, 0)

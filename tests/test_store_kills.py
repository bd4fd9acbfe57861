"""Killed, or without room, before any step that a run takes on the disk: what is there is whole, and it goes on."""

import errno
import multiprocessing
import os
import sys

import pandas as pd
import pytest

from anchorlens import store

COLUMNS = {"example": "int64", "value": "float64"}
FRAME = pd.DataFrame({"example": [0, 1], "value": [0.25, -1.5]})
STEPS = ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync")
KILLED = 9


def whole_run(run: store.Run, frame: pd.DataFrame) -> None:
    """As ``batch.run`` and a notebook go about it, with what is damaged set aside."""
    with store.claiming(run, resume=True):
        if run.whole and store.damage(run):
            run.set_aside()
        if 0 not in run.parts("results", 1):
            run.write_part(frame, COLUMNS, "results", 0, of=1)
        run.write(run.read_part("results", 0), COLUMNS)
        run.finish({"of": len(frame)})


def counted(run: store.Run, frame: pd.DataFrame, at: int, how: str) -> None:
    """In a process of its own: ends before step ``at``; exits with 0 if there are not so many."""
    steps = 0

    def watched(real):
        def step(*given, **more):
            nonlocal steps
            steps += 1
            if steps == at and how == "killed":
                os._exit(KILLED)
            if steps >= at and how == "full" and real.__name__ in ("mkdir", "fsync", "rename"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*given, **more)

        return step

    for name in STEPS:
        setattr(os, name, watched(getattr(os, name)))
    try:
        whole_run(run, frame)
    except store.StoreError as error:
        os._exit(KILLED if "No space left" in str(error) and "--store" in str(error) else 1)
    except OSError as error:
        print(f"step {steps}: {error!r}", file=sys.stderr)
        os._exit(2)
    os._exit(0)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anchorlens.store", "pytest"])  # what takes a second to import
    return context


@pytest.mark.parametrize("how", ["killed", "full"])
@pytest.mark.parametrize("there", ["nothing", "a result", "a damaged result"])
def test_before_whatever_step_a_run_ends_there_is_one_whole_result_or_none_and_the_next_completes(
    tmp_path, processes, there, how
):
    older, ended = FRAME.assign(value=[1.0, 2.0]), 0
    for at in range(1, 99):
        run = store.Run(tmp_path / str(at) / "abc")
        if there != "nothing":
            whole_run(run, older)
        if there == "a damaged result":
            (run.final / "results.parquet").write_bytes(b"PAR1")
        process = processes.Process(target=counted, args=(run, FRAME, at, how))
        process.start()
        process.join()
        assert process.exitcode in (0, KILLED), f"before step {at}"
        if run.whole and there != "a damaged result":
            assert store.damage(run) == "", f"before step {at}"
            found = store.read(run.final)["value"].tolist()
            assert found in ([0.25, -1.5], *([[1.0, 2.0]] if there != "nothing" else [])), f"before step {at}"
        if there == "a result":
            kept = [path for path in (run.final, run._replaced) if store.damage(store.Run(path)) == ""]
            assert kept, f"before step {at}: the older result went before the newer was there"
        whole_run(run, FRAME)
        assert store.damage(run) == ""
        pd.testing.assert_frame_equal(store.read(run.final), FRAME, check_exact=True)
        left = {path.name for path in run.final.parent.iterdir()}
        assert left - {"abc.broken"} == {"abc"}, f"before step {at}"
        assert {path.name for path in run.final.iterdir()} == {"manifest.json", "results.parquet"}
        if process.exitcode == 0:
            break
        ended += 1
    assert ended == at - 1 > 10, "before each step but the last, of which there are that many at least"


def test_a_path_is_as_it_was_given(tmp_path):
    run = store.Run(tmp_path / "it's {a} 'b' \"c\" ünï=1 100% $HOME" / "abc")
    whole_run(run, FRAME)
    assert store.damage(run) == ""
    pd.testing.assert_frame_equal(store.read(run.final), FRAME)

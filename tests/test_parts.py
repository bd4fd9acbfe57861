"""A part of a table counts only as it was written, whatever became of its bytes."""

import errno
import os
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from anchorlens import parts, store

COLUMNS = {"example": "int64", "flow": "str", "value": "float64"}
FRAME = pd.DataFrame(
    {"example": [0, 1, 2], "flow": pd.Series(["S_wp", "S_pq", "S_pq"], dtype="str"), "value": [0.25, -np.nan, -0.0]}
)


@pytest.fixture
def run(tmp_path) -> store.Run:
    made = store.Run(tmp_path / "2_1" / "abc")
    made.write_part(FRAME, COLUMNS, "results", 0, of=2)
    return made


def cut(content: bytes) -> bytes:
    return content[:-9]


def altered(content: bytes) -> bytes:
    """A value is another, which parquet itself does not see."""
    where = content.index(np.float64(0.25).tobytes())
    return content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_part_is_read_as_it_was_written(run, rows):
    run.write_part(FRAME.head(rows), COLUMNS, "results", 1, of=2)
    assert run.parts("results", 2) == {0, 1}
    pd.testing.assert_frame_equal(run.read_part("results", 1), FRAME.head(rows), check_exact=True)


@pytest.mark.parametrize("how", [cut, altered, lambda _: b"", lambda _: b"PAR1"])
def test_a_part_that_was_damaged_does_not_count_and_is_not_read(run, how):
    path = parts.place(run.partial, "results", 0)
    path.write_bytes(how(path.read_bytes()))
    assert run.parts("results", 2) == set()
    with pytest.raises(store.StoreError, match=r"results-00000\.parquet .*measures this part anew"):
        run.read_part("results", 0)
    run.write_part(FRAME, COLUMNS, "results", 0, of=2)
    assert run.parts("results", 2) == {0}


def test_whatever_bit_is_flipped_a_part_that_counts_has_the_rows_that_were_written(run):
    path = parts.place(run.partial, "results", 0)
    content, seen = path.read_bytes(), Counter()
    for at in range(0, len(content), 7 if "ANCHORLENS_FAULTS" not in os.environ else 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        counts = run.parts("results", 2) == {0}
        seen[counts] += 1
        if counts:
            pd.testing.assert_frame_equal(run.read_part("results", 0), FRAME, check_exact=True)
    assert seen[False] > seen[True] / 2, "the check sees damage (the rest lies in bytes that nothing depends on)"


def test_a_file_under_the_name_of_another_part_is_not_that_part(run):
    parts.place(run.partial, "results", 0).rename(parts.place(run.partial, "results", 1))
    assert run.parts("results", 2) == set()


@pytest.mark.parametrize("step", ["write_table", "fsync"])
def test_a_part_for_which_there_is_no_room_leaves_nothing_under_any_name(run, monkeypatch, step):
    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, step) if step == "fsync" else (parts.pq, step)), full)
    with pytest.raises(store.StoreError, match=r"output folder .*No space left on device.*with room left"):
        run.write_part(FRAME, COLUMNS, "results", 1, of=2)
    assert [path.name for path in run.partial.iterdir()] == ["results-00000.parquet"]


def test_parts_stay_until_a_run_is_whole(run, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with store.claiming(run, resume=True):
        run.write(FRAME, COLUMNS)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(store.StoreError, match="No space left"):
                run.finish({})
    with store.claiming(run, resume=True):
        assert run.parts("results", 2) == {0}, "what was measured is not measured again"
        run.write(FRAME, COLUMNS)
        assert sorted(path.name for path in run.finish({}).iterdir()) == ["manifest.json", "results.parquet"]

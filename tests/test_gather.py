"""Rows so far are in the partial folder whatever happens, and give way to the whole when all are there."""

import pandas as pd
import pytest

from anchorlens import store
from anchorlens.batch import Session

COLUMNS = {"example": "int64", "seed": "int64", "value": "float64"}


@pytest.fixture
def session(tmp_path) -> Session:
    return Session(store.Run(tmp_path / "2_2_isolation" / "0123"))


def frame(*rows: tuple[int, int, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=pd.Index(list(COLUMNS))).astype(COLUMNS)


def files(session: Session) -> list[str]:
    return sorted(path.name for path in session.folder.iterdir())


def test_parts_become_one_table_sorted_by_seed_and_example(session):
    whole = session.gather([frame((2, 1, 0.5), (1, 1, 0.25)), frame((0, 0, 1.0))], COLUMNS)
    assert whole["value"].tolist() == [1.0, 0.25, 0.5]
    assert files(session) == ["results.parquet"]
    pd.testing.assert_frame_equal(pd.read_parquet(session.folder / "results.parquet"), whole)


def test_parts_that_came_before_an_error_stay(session):
    def parts():
        yield frame((0, 0, 1.0))
        yield frame((1, 0, 2.0))
        raise FloatingPointError("example 2")

    with pytest.raises(FloatingPointError, match="example 2"):
        session.gather(parts(), COLUMNS, "isolation")
    assert files(session) == ["isolation-00000.parquet", "isolation-00001.parquet"]
    assert pd.read_parquet(session.folder / "isolation-00001.parquet")["value"].tolist() == [2.0]


def test_several_tables_are_gathered_together(session):
    other = {"seed": "int64", "loss": "float64"}
    losses = pd.DataFrame({"seed": [0], "loss": [0.5]})
    parts = [{"results": frame((n, 0, 1.0)), "losses": losses} for n in range(2)]
    found = session.gather_tables(parts, {"results": COLUMNS, "losses": other})
    assert {name: len(table) for name, table in found.items()} == {"results": 2, "losses": 2}
    assert files(session) == ["losses.parquet", "results.parquet"]


def test_no_parts_at_all_are_refused(session):
    with pytest.raises(store.StoreError, match="table 'results' has no rows: there were no prompts"):
        session.gather([], COLUMNS)

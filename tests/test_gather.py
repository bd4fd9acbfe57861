"""Tables come in parts: each is stored when it is done, none is done twice, and together they are what is returned."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from tqdm import tqdm

from anchorlens import gathering, store
from anchorlens.batch import Session

COLUMNS = {"example": "int64", "seed": "int64", "value": "float64"}
LOSSES = {"seed": "int64", "loss": "float64"}
Rows = list[tuple[int, int, float]]
PARTS: list[Rows] = [[(2, 1, 0.5), (1, 1, 0.25)], [(0, 0, 1.0)], [(3, 0, 2.0)]]


@pytest.fixture
def run(tmp_path) -> store.Run:
    return store.Run(tmp_path / "2_2_isolation" / "0123")


@pytest.fixture
def session(run) -> Session:
    return Session(run)


def frame(*rows: tuple[int, int, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=pd.Index(list(COLUMNS))).astype(COLUMNS)


def measure(part: Rows) -> Iterator[pd.DataFrame]:
    """A frame for every prompt of a part."""
    return map(frame, part)


def watched(done: list[Rows], until: int = 9) -> Callable[[Rows], Iterator[pd.DataFrame]]:
    """``measure`` that notes what it is given and, after ``until`` parts, is interrupted before the end of the next."""

    def noting(part: Rows) -> Iterator[pd.DataFrame]:
        done.append(part)
        yield from measure(part)
        if len(done) > until:
            raise KeyboardInterrupt

    return noting


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupted(run: store.Run, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        Session(run).gather(watched([], after), PARTS, COLUMNS)


def test_parts_become_one_table_sorted_by_seed_and_example(session):
    whole = session.gather(measure, PARTS, COLUMNS)
    assert whole["value"].tolist() == [1.0, 2.0, 0.25, 0.5]
    pd.testing.assert_frame_equal(pd.read_parquet(session.folder / "results.parquet"), whole)


def test_every_part_is_stored_before_the_next_is_measured(session):
    seen = []

    def looking(part: Rows) -> Iterator[pd.DataFrame]:
        seen.append(files(session.folder) if session.folder.is_dir() else [])
        return measure(part)

    session.gather(looking, PARTS, COLUMNS)
    assert seen == [[], ["results-00000.parquet"], ["results-00000.parquet", "results-00001.parquet"]]
    assert files(session.folder)[-1] == "results.parquet"
    assert [path.name for path in session.target.files()] == ["results.parquet"]
    assert files(session.target.finish({})) == ["manifest.json", "results.parquet"]


def test_parts_that_an_earlier_try_completed_are_not_measured_again(run, capsys):
    interrupted(run, after=2)
    done = []
    later = Session(run, resumes=True)
    whole = later.gather(watched(done), PARTS, COLUMNS)
    assert done == PARTS[2:]
    assert later.resumed == 2
    pd.testing.assert_frame_equal(
        whole, Session(store.Run(run.final.with_name("4567"))).gather(measure, PARTS, COLUMNS)
    )
    said = capsys.readouterr().err
    assert "results: resuming: 2 of 3 parts are there\n" in said
    assert "results:  75%" in said, "progress begins at the 3 of 4 prompts that are there"


def test_a_run_by_hand_measures_everything_anew(run, capsys):
    interrupted(run, after=2)
    done: list[Rows] = []
    Session(run).gather(watched(done), PARTS, COLUMNS)
    assert done == PARTS
    assert "resuming" not in capsys.readouterr().err


def test_a_table_gathered_twice_is_measured_twice_by_hand_and_refused_where_parts_could_be_mixed_up(run):
    by_hand, done = Session(run), []
    by_hand.gather(measure, PARTS, COLUMNS)
    by_hand.gather(watched(done), PARTS, COLUMNS)
    assert done == PARTS
    later = Session(run, resumes=True)
    later.gather(measure, PARTS, COLUMNS)
    with pytest.raises(store.StoreError, match="table results is gathered twice in one run"):
        later.gather(measure, PARTS, COLUMNS)


def test_a_measure_that_hands_on_more_than_rows_can_ask_to_be_done_anew(run):
    interrupted(run, after=2)
    done = []
    Session(run, resumes=True).gather(watched(done), PARTS, COLUMNS, anew=True)
    assert done == PARTS


def test_files_that_only_bear_the_name_of_a_part_are_not_taken_for_one(run):
    run.partial.mkdir(parents=True)
    wrong = frame((7, 7, 7.0))
    wrong.to_parquet(run.partial / "results-00000.parquet")  # no stamp
    (run.partial / "results-00001.parquet").write_bytes(b"PAR1")  # half a file
    other = store.Run(run.final.with_name("4567"))
    other.write_part(wrong, COLUMNS, "results", 2, of=3).rename(run.partial / "results-00002.parquet")  # another key
    done = []
    whole = Session(run, resumes=True).gather(watched(done), PARTS, COLUMNS)
    assert done == PARTS
    assert 7 not in whole["example"].tolist()


@pytest.mark.parametrize("other", [{"name": "twin"}, {"number": 1}, {"of": 4}], ids=str)
def test_a_part_of_something_else_is_not_taken(run, other):
    path = run.write_part(frame((7, 7, 7.0)), COLUMNS, **{"name": "results", "number": 0, "of": 3, **other})
    path.rename(run.partial / "results-00000.parquet")
    assert run.parts("results", 3) == set()


def test_a_part_says_in_its_file_which_it_is_and_is_read_as_it_was_written(run):
    path = run.write_part(frame((1, 0, 0.1)), COLUMNS, "results", 0, of=1)
    assert b"anchorlens" in pq.read_schema(path).metadata
    pd.testing.assert_frame_equal(pd.read_parquet(path), frame((1, 0, 0.1)))
    assert run.parts("results", 1) == {0}


def test_what_came_before_an_error_stays_and_does_not_count_as_done(run):
    def failing(part: Rows) -> Iterator[pd.DataFrame]:
        yield from measure(part[:1])
        if part == PARTS[0]:
            raise FloatingPointError("example 1")

    parts = [PARTS[1], PARTS[0]]
    with pytest.raises(FloatingPointError, match="example 1"):
        Session(run).gather(failing, parts, COLUMNS, "isolation")
    assert files(run.partial) == ["isolation-00000.parquet", "isolation-00001.incomplete.parquet"]
    assert pd.read_parquet(run.partial / "isolation-00001.incomplete.parquet")["value"].tolist() == [0.5]
    done = []
    Session(run, resumes=True).gather(watched(done), parts, COLUMNS, "isolation")
    assert done == [PARTS[0]]
    assert [path.name for path in run.files()] == ["isolation.parquet"]


def test_a_part_that_cannot_be_renamed_into_place_is_not_there(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Session(run).gather(measure, PARTS, COLUMNS)
    assert run.parts("results", 3) == set()
    with store.claiming(run, resume=True):
        assert files(run.partial) == [], "half-written files go when the run is claimed again"


def both(part: Rows) -> Iterator[dict[str, pd.DataFrame]]:
    for row in part:
        losses = pd.DataFrame({"seed": [row[1]], "loss": [row[2]]})
        yield {"results": frame(row)} | ({"losses": losses} if row[0] else {})


def test_several_tables_are_gathered_together_though_a_part_may_lack_rows_of_one(session):
    found = session.gather_tables(both, PARTS, {"results": COLUMNS, "losses": LOSSES})
    assert {name: len(table) for name, table in found.items()} == {"results": 4, "losses": 3}
    assert {str(kind) for kind in found["losses"].dtypes} == {"int64", "float64"}


def test_a_part_is_there_only_if_it_is_in_every_table(run):
    Session(run).gather_tables(both, PARTS, {"results": COLUMNS, "losses": LOSSES})
    (run.partial / "losses-00001.parquet").unlink()
    done = []

    def noting(part: Rows) -> Iterator[dict[str, pd.DataFrame]]:
        done.append(part)
        return both(part)

    Session(run, resumes=True).gather_tables(noting, PARTS, {"results": COLUMNS, "losses": LOSSES})
    assert done == [PARTS[1]]


def test_rows_that_are_not_as_declared_are_refused_with_the_part_that_has_them(session):
    with pytest.raises(store.StoreError, match=r"table 'results' does not match .* not declared \['more'\]"):
        session.gather(lambda part: [frame(*part).assign(more=1)], PARTS, COLUMNS)


def test_no_parts_at_all_are_refused(session):
    with pytest.raises(store.StoreError, match="table 'results' has no rows: there were no prompts"):
        session.gather(measure, [], COLUMNS)


def test_progress_counts_prompts_and_tells_the_time_left(session, capsys, monkeypatch):
    monkeypatch.setattr(gathering, "tqdm", partial(tqdm, mininterval=0))
    assert list(session.progress(PARTS, "queries")) == PARTS
    session.gather(lambda part: [frame(*[(n, 0, 0.0) for n in range(9)])], PARTS, COLUMNS)  # more prompts than it has
    said = capsys.readouterr()
    assert "queries: 100%" in said.err
    assert "4/4" in said.err
    assert "prompt/s]" in said.err
    assert " 9prompt" not in said.err, "which is how a bar beyond its end looks"
    assert said.out == ""


def test_a_table_cannot_take_the_name_of_a_part(session):
    with pytest.raises(store.StoreError, match="'results-00001': names that end in five digits are those of parts"):
        session.write(frame((0, 0, 1.0)), COLUMNS, "results-00001")

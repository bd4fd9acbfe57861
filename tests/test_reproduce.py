"""``anchorlens reproduce``: the paper's grid for one model with the rows that are there, and then the comparison."""

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from anchorlens import cli, paper, preflight, reproducing, tasks
from anchorlens.parameters import ParameterError
from anchorlens.preflight import MissingModelError
from anchorlens.tasks import MissingRowsError

TINY = Path(__file__).parent / "fixtures" / "gpt2-tiny"


def rows(path: Path) -> Path:
    path.write_text("text,label\na joy,1\nslow,0\ndull,0\nfine,1\n")
    return path


@pytest.fixture
def silent(monkeypatch):
    """A hub that has nothing and does not answer."""

    def nowhere(name: str, *_: object, **__: object):
        if name in preflight.TOYS or Path(name).is_dir():
            return located(name)
        raise MissingModelError(f"model {name!r}: not here, and the hub does not answer.")

    located = preflight.locate
    monkeypatch.setattr(preflight, "locate", nowhere)


@pytest.mark.parametrize(
    ("text", "found"), [("42..46", [42, 43, 44, 45, 46]), ("42", [42]), ("7,3", [7, 3]), ("5..5", [5])]
)
def test_seeds_are_a_range_or_a_list(text, found):
    assert reproducing.seeds(text) == found


@pytest.mark.parametrize("text", ["", "46..42", "1,1", "1,x", "-1", "1...3", "1..2..3", "0..999999999999"])
def test_what_names_no_seeds_is_refused(text):
    with pytest.raises(ParameterError, match="expected whole numbers from 0 on"):
        reproducing.seeds(text)


@settings(deadline=None)  # the machine may be busy
@given(st.text(alphabet="0123456789.,- x", max_size=12) | st.text(max_size=6))
def test_any_text_names_distinct_seeds_or_is_refused(text):
    try:
        found = reproducing.seeds(text)
    except ParameterError:
        return
    assert found
    assert len(set(found)) == len(found)
    assert min(found) >= 0


def test_queries_come_from_test_or_validation_and_demonstrations_from_train(tmp_path):
    made = {name: rows(tmp_path / f"{name}.csv") for name in ("sst2_validation", "sst2_test", "sst2_train", "trec")}
    found = reproducing.files(tmp_path, tasks.SST2)
    assert found == (made["sst2_validation"], made["sst2_train"])  # the labels of the test split are not public
    assert reproducing.files(tmp_path, tasks.TREC) == (made["trec"], made["trec"])


def test_a_task_without_files_and_one_with_too_many_are_told_apart(tmp_path):
    with pytest.raises(MissingRowsError, match=r"no rows of emo: folder '.*' has no emo_test"):
        reproducing.files(tmp_path, tasks.EMO)
    for suffix in (".csv", ".tsv"):
        rows(tmp_path / f"emo_test{suffix}")
    with pytest.raises(ParameterError, match=r"both emo_test.csv and emo_test.tsv are there"):
        reproducing.files(tmp_path, tasks.EMO)


def test_without_weights_the_toy_runs_and_says_so(silent, tmp_path):
    model, data, said = reproducing.model_or_toy("", tmp_path)
    assert (model, data) == ("toy", None)
    assert said.startswith("NOT THE PAPER'S MODEL: model 'gpt2-xl'")
    assert "--data is left aside" in said
    assert reproducing.model_or_toy("toy", None) == ("toy", None, "")


def test_nothing_stands_in_for_a_model_that_was_named(silent):
    with pytest.raises(MissingModelError):
        reproducing.model_or_toy("gpt2-xl", None)


def test_the_grid_is_the_papers(tmp_path):
    grid = reproducing.plan("toy", tmp_path, seeds=[42, 43])
    assert grid.missing == {}  # the toy has rows of all four tasks
    seen = {(job.notebook, job.parameters["task"], *job.parameters["seeds"]) for job in grid.jobs}
    notebooks = [each for each in paper.PUBLISHED["settings"] if each]
    assert seen == {
        (notebook, task, seed)
        for notebook in notebooks
        for task in paper.PUBLISHED["tasks"]
        for seed in (42, 43)
        if notebook != "3_3_diagnosis" or task == "trec"
    }
    assert len(grid.jobs) == len(seen) == 2 * (5 * 4 + 1)
    assert {job.parameters["limit"] for job in grid.jobs} == {1000}


def test_tasks_without_rows_are_missing_and_all_of_them_an_error(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows(folder / "sst2.csv")
    grid = reproducing.plan(str(TINY), tmp_path / "store", seeds=[42], data=folder, only_notebooks=["2_3_extraction"])
    assert [job.parameters["task"] for job in grid.jobs] == ["sst2"]
    assert list(grid.missing) == ["trec", "agnews", "emo"]
    (folder / "sst2.csv").unlink()
    with pytest.raises(MissingRowsError, match="no task has rows"):
        reproducing.plan(str(TINY), tmp_path / "store", seeds=[42], data=folder)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "toy", "-n", "2_3_extractoin"], 2, "did you mean '2_3_extraction'?"),
        (["--model", "toy", "-t", "sst3"], 2, "is none of the paper's"),
        (["--model", "toy", "--seeds", "x"], 2, "--seeds 'x'"),
        (["--model", "toy", "--data", "nowhere"], 2, "expected a folder with files such as sst2_train.csv"),
        (["--model", "/nowhere"], 3, "nothing there"),
    ],
)
def test_bad_words_start_nothing(tmp_path, words, code, said):
    result = CliRunner().invoke(cli.app, ["reproduce", "--store", str(tmp_path / "store"), *words])
    assert result.exit_code == code
    assert said in result.stderr
    assert not (tmp_path / "store").exists()


def test_a_dry_run_lists_and_runs_nothing(tmp_path):
    words = ["reproduce", "--model", "toy", "--seeds", "42", "-t", "sst2", "--store", str(tmp_path), "--dry-run"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 5
    assert list(tmp_path.iterdir()) == []


def test_the_command_falls_back_on_the_toy_loudly(silent, tmp_path):
    words = ["reproduce", "--seeds", "42", "-n", "2_2_isolation", "--store", str(tmp_path), "--dry-run"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0
    assert "NOT THE PAPER'S MODEL" in result.stderr
    assert [line.split(" task=")[0] for line in result.stdout.splitlines()] == ["new     2_2_isolation model=toy"] * 4


@pytest.mark.slow
def test_a_small_grid_ends_with_a_comparison(tmp_path):
    words = ["reproduce", "--model", "toy", "--seeds", "42", "--limit", "8", "-t", "sst2", "--store", str(tmp_path)]
    words += ["-n", "2_2_isolation", "-n", "2_3_extraction", "--json"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["event"], told["status"], told["pass"], told["differs"]) == ("compared", "ok", 0, 0)
    frame = pd.read_parquet(tmp_path / "comparison.parquet")
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == paper.COLUMNS
    assert set(frame.loc[frame["section"].isin(["2.2", "2.3"]), "verdict"]) == {"not comparable"}
    assert set(frame.loc[frame["n"] > 0, "n"]) == {8}
    assert (tmp_path / "comparison.csv").is_file()
    assert "not run: emo: not asked for" in result.stderr
    again = CliRunner().invoke(cli.app, words[:-1])
    assert again.exit_code == 0
    assert "2.2 2_2_isolation: toy" in again.stdout
    assert "of 2 runs 0 done, 2 cached" in again.stderr


def test_what_is_said_is_of_the_model_that_was_asked_for(tmp_path):
    """A store may hold other models' runs, which must not stand for those of this one that all failed."""
    (folder := tmp_path / "m").mkdir()
    names = ["toy", "m (0123abcd)", "m", "mm", "m2 (0123abcd)"]
    frame = pd.DataFrame({"model": names, "notebook": ["2_1_information_flow", *["2_2_isolation"] * 4]})
    assert list(cli.paper._asked(frame, str(folder), [])["model"]) == ["m (0123abcd)", "m"]
    assert list(cli.paper._asked(frame, "toy", ["2_1_information_flow"])["model"]) == ["toy"]
    assert len(cli.paper._asked(frame, "toy", ["2_2_isolation"])) == len(cli.paper._asked(frame, "gpt2-xl", [])) == 0

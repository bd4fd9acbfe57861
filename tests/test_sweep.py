"""A grid of runs: expanded and checked before any starts, run once each, told as events."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from sweep_helpers import cut
from typer.testing import CliRunner

from anchorlens import batch, cli, parameters, store, sweep
from anchorlens.parameters import ParameterError
from anchorlens.sweep import events, grid, local

SMALL = {"notebooks": ["2_3_extraction"], "model": "toy", "limit": 8, "batch_tokens": 4000}


def names(made: list[sweep.Job]) -> list[str]:
    return [job.name for job in made]


def written(folder: Path, said: dict) -> Path:
    path = folder / "grid.yaml"
    path.write_text(json.dumps(said))  # JSON is YAML
    return path


def test_every_combination_is_a_run_and_runs_of_one_model_are_together(tmp_path):
    made = sweep.jobs(
        {
            "notebooks": ["2_3_extraction", "2_2_isolation"],
            "model": ["toy", "toy-random"],
            "seeds": [[1], [2, 3]],
            "only": {"2_2_isolation": {"depths": [[1], [2]]}},
        },
        tmp_path,
    )
    assert len(made) == 2 * 2 * (1 + 2) == len({job.folder for job in made})
    assert [job.parameters["model"] for job in made] == ["toy"] * 6 + ["toy-random"] * 6
    assert made[0].name == "2_3_extraction model=toy seeds=[1]"
    assert {job.state for job in made} == {"new"}
    assert {tuple(job.parameters["seeds"]) for job in made} == {(1,), (2, 3)}


def test_one_list_is_one_value_of_a_list_parameter_and_many_of_any_other(tmp_path):
    made = sweep.jobs({**SMALL, "seeds": [4, 5], "shots": [1, 2]}, tmp_path)
    assert [(job.parameters["seeds"], job.parameters["shots"]) for job in made] == [([4, 5], 1), ([4, 5], 2)]


def test_runs_that_come_to_the_same_are_one(tmp_path):
    assert len(sweep.jobs({**SMALL, "device": ["auto", "cpu"]}, tmp_path)) == 1


def test_all_means_every_notebook_but_the_tour(tmp_path):
    made = sweep.jobs({"model": "toy"}, tmp_path)
    assert [job.notebook for job in made] == [name for name in parameters.notebooks() if name != "0_tour"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modle": "toy"}, "2_3_extraction.ipynb has no parameter 'modle'; did you mean 'model'?"),
        ({"notebook": "2_3_extraction"}, "grid: a grid has no 'notebook'; did you mean 'notebooks'?"),
        ({"folder": "/etc"}, "has no parameter 'folder'"),
        ({"shots": "two"}, "parameter shots='two' is str, expected int"),
        ({"seeds": [[1], ["x"]]}, "parameter seeds=['x'] is list, expected list[int]"),
        ({"shots": [1, 1]}, "grid: shots has 1 twice; give each value once"),
        ({"shots": []}, "grid: shots is an empty list"),
        ({"notebooks": []}, "notebooks: expected all, a name or a list of names"),
        ({"notebooks": ["2_3_extractoin"]}, "no notebook '2_3_extractoin'; did you mean '2_3_extraction'?"),
        (
            {"notebooks": ["2_3_extraction", "3_1_reweighting"], "epochs": 3},
            "epochs is no parameter of 2_3_extraction. Put it under only:, as in only: {3_1_reweighting: {epochs",
        ),
        ({"only": {"2_2_isolation": {"depths": [1]}}}, "only: 2_2_isolation is not among the notebooks 2_3_extraction"),
        ({"only": ["x"]}, "only: expected {notebook: {parameter: values}}"),
        ({"learning_rate": float("nan")}, "no parameter 'learning_rate'"),
        ({"task": "sst3"}, "no task 'sst3'; did you mean 'sst2'?"),
        ({"x = 1; import os": 1}, "has no parameter 'x = 1; import os'"),
    ],
)
def test_what_no_run_could_use_is_refused_before_any_starts(tmp_path, change, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        sweep.jobs({**SMALL, **change}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: toy\nmodel: gpt2\n", "line 2: not readable as YAML (the key 'model' is there twice)"),
        ("- model\n", "expected notebooks: and parameters, found list"),
        ("", "expected notebooks: and parameters, found nothing"),
        ("model: [toy\n", "not readable as YAML"),
        ("!!python/object/apply:os.system ['true']\n", "not readable as YAML"),
    ],
)
def test_a_file_that_is_no_grid_is_refused(tmp_path, text, said):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=re.escape(said)):
        sweep.read(path)
    with pytest.raises(ParameterError, match=r"none\.yaml: no such file; give a grid as YAML"):
        sweep.read(tmp_path / "none.yaml")


FILE = """\
notebooks:
  - 2_2_isolation
  - 3_1_reweighting
model: &small toy
shots:
  - 1
  - 2
only:
  3_1_reweighting:
    learning_rate: [0.1,
      0.2]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  - 2\n", "  - two\n", "grid.yaml, line 7: 2_2_isolation.ipynb: parameter shots='two' is str, expected int"),
        ("  - 2\n", "  - 1\n", "grid.yaml, line 7: shots has 1 twice; give each value once"),
        ("  - 1\n  - 2\n", "  []\n", "grid.yaml, line 5: shots is an empty list"),
        ("  - 2\n", "  - -2\n", "grid.yaml, line 7: shots=-2: in-context learning needs"),
        ("0.2]", "0.0]", "grid.yaml, line 11: learning_rate=0.0: it must be above 0"),
        ("0.2]", "0.1]", "grid.yaml, line 11: learning_rate has 0.1 twice"),
        ("learning_rate", "learning_rte", "grid.yaml, line 10: 3_1_reweighting.ipynb has no parameter 'learning_rte'"),
        ("toy\n", "no-such/model-here\n", "grid.yaml, line 4: "),
        ("toy\n", "toy\ntask: sst3\n", "grid.yaml, line 5: no task 'sst3'"),
        ("toy\n", "toy\ndepths: [[1]]\n", "grid.yaml, line 5: depths is no parameter of 3_1_reweighting"),
        ("  - 3_1_r", "  - 3_1_rr", "grid.yaml, line 3: no notebook '3_1_rreweighting'"),
        ("  3_1_r", "  3_1_q", "grid.yaml, line 9: only: 3_1_qeweighting is not among"),
        ("only:", "only: 3\nx:", "grid.yaml, line 8: only: expected {notebook"),
        (
            "toy\n",
            "toy\nas_published: *small\n",
            "grid.yaml, line 5: 2_2_isolation.ipynb: parameter as_published='toy'",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(tmp_path, old, new, said):
    path = tmp_path / "grid.yaml"
    assert old in FILE
    path.write_text(FILE.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/{re.escape(said)}"):
        sweep.jobs(sweep.with_words(sweep.read(path), [], []), tmp_path / "runs", where=str(path))


def test_what_a_command_line_says_instead_has_no_line(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(FILE)
    with pytest.raises(ParameterError, match=r"^2_2_isolation.ipynb: parameter shots='two' is str"):
        sweep.jobs(sweep.with_words(sweep.read(path), [], ["shots=two"]), tmp_path / "runs", where=str(path))


def test_values_that_are_code_stay_text(tmp_path):
    evil = "toy\"; open('made', 'w').write('x') #"
    with pytest.raises(ValueError, match="model"):
        sweep.jobs({**SMALL, "model": evil}, tmp_path)


def test_a_command_line_says_the_same_as_a_file(tmp_path):
    words = ["model=toy", "limit=8", "batch_tokens=4000", "seeds=1", "seeds=2,3", "shots=1", "shots=2"]
    said = sweep.with_words({}, ["2_3_extraction"], words)
    want = {**SMALL, "seeds": [[1], [2, 3]], "shots": [1, 2]}
    assert names(sweep.jobs(said, tmp_path)) == names(sweep.jobs(want, tmp_path))
    changed = sweep.with_words(want, [], ["shots=2"])
    assert {job.parameters["shots"] for job in sweep.jobs(changed, tmp_path)} == {2}
    of_one = {**want, "only": {"2_3_extraction": {"shots": [3, 4], "seeds": [5]}}}
    changed = sweep.with_words(of_one, [], ["shots=2"])
    assert [(job.parameters["shots"], job.parameters["seeds"]) for job in sweep.jobs(changed, tmp_path)] == [(2, [5])]
    with pytest.raises(ParameterError, match="-p 'shots': expected NAME=VALUE"):
        sweep.with_words({}, [], ["shots"])


def test_a_file_is_narrowed_to_a_notebook_on_the_command_line(tmp_path):
    said = {
        "notebooks": ["2_3_extraction", "2_2_isolation"],
        "model": "toy",
        "only": {"2_2_isolation": {"depths": [[1]]}},
    }
    narrowed = sweep.with_words(said, ["2_3_extraction"], [])
    assert [job.notebook for job in sweep.jobs(narrowed, tmp_path)] == ["2_3_extraction"]
    typo = sweep.with_words({**said, "only": {"2_2_isolatoin": {"depths": [[1]]}}}, ["2_3_extraction"], [])
    with pytest.raises(ParameterError, match="2_2_isolatoin is not among the notebooks"):
        sweep.jobs(typo, tmp_path)


def test_a_command_without_a_grid_is_refused(tmp_path):
    run = CliRunner().invoke(cli.app, ["sweep", "--store", str(tmp_path)])
    assert (run.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "nothing says what to run" in run.output


def test_the_papers_grid_is_one(monkeypatch, tmp_path):
    said = sweep.read(parameters.find("0_tour").parent / "paper.yaml")
    monkeypatch.setattr(batch, "plan", lambda notebook, given, root: _planned(notebook, given, root))
    made = sweep.jobs(said, tmp_path)
    assert len(made) == 6 * 2 * 3 * 5
    for job in made:
        parameters.check(parameters.find(job.notebook), job.parameters)


def _planned(notebook, given, root):
    named = store.key({"notebook": notebook, **given})
    return batch.Plan(parameters.find(notebook), given, {}, {}, store.Run(root / notebook / named))


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess]:
    """Three runs of which one fails, on two workers, from the command line."""
    folder = tmp_path_factory.mktemp("swept")
    path = written(folder, {**SMALL, "seeds": [[1], [2]], "only": {"2_3_extraction": {"label_words": ["auto", "A|B"]}}})
    command = [sys.executable, "-m", "anchorlens.cli", "sweep", str(path), "--store", str(folder / "runs")]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    run = subprocess.run([*command, "--workers", "2", "--json"], capture_output=True, text=True, env=environment)
    return folder, path, run


def happened(run: subprocess.CompletedProcess) -> list[dict]:
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_failed_run_never_stops_the_others_and_all_is_told(swept):
    folder, _, run = swept
    told = happened(run)
    assert run.returncode == 1, run.stderr
    assert [each["event"] for each in told if each["event"] in ("begin", "finished")] == ["begin", "finished"]
    ended = {each["job"]: each["event"] for each in told if each["event"] in events.ENDS}
    assert sorted(ended.values()) == ["done", "done", "failed", "failed"]
    (error, _) = [each["error"] for each in told if each["event"] == "failed"]
    assert "PromptError: " in error, "the toy does not know these words"
    found = sweep.status(folder / "runs")
    assert {name: found[name] for name in ("state", "total", "done", "cached", "failed")} == {
        "state": "finished",
        "total": 4,
        "done": 2,
        "cached": 0,
        "failed": 2,
    }
    assert found["running"] == {}
    said = CliRunner().invoke(cli.app, ["status", str(folder / "runs")]).output
    assert "failed: 2_3_extraction" in said
    assert "\\n" not in said, "an error of several lines is told in one"


def test_what_was_done_is_not_done_again_and_what_failed_is_known(swept):
    folder, path, _ = swept
    states = [job.state for job in sweep.jobs(sweep.read(path), folder / "runs")]
    assert sorted(states) == ["cached", "cached", "failed", "failed"]
    listed = CliRunner().invoke(cli.app, ["sweep", str(path), "--store", str(folder / "runs"), "--dry-run"])
    assert listed.exit_code == 0
    assert len(re.findall(r"^cached  2_3_extraction", listed.output, re.MULTILINE)) == 2
    assert len(re.findall(r"^failed  2_3_extraction .*: PromptError: ", listed.output, re.MULTILINE)) == 2


def test_tables_are_those_of_a_run_alone(swept, tmp_path):
    folder, path, _ = swept
    job = next(job for job in sweep.jobs(sweep.read(path), folder / "runs") if job.state == "cached")
    alone = batch.run(job.notebook, dict(job.parameters), root=tmp_path, bar=False)
    pd.testing.assert_frame_equal(store.read(job.folder), store.read(alone.folder), check_exact=True)


def test_a_run_that_was_stored_when_its_sweep_ended_is_done_though_nobody_has_said_so(swept, tmp_path):
    folder, path, _ = swept
    whole = next(job.folder for job in sweep.jobs(sweep.read(path), folder / "runs") if job.state == "cached")
    with events.Events(tmp_path, 3, as_json=True) as told:
        for job in ("none", "whole", "damaged"):
            told.say("started", job=job, folder=str(tmp_path / job))
        for job in ("whole", "damaged"):
            shutil.copytree(whole, tmp_path / job)
        cut(tmp_path / "damaged" / "results.parquet")  # and is about to be set aside
        told.say("interrupted")
    found = sweep.status(tmp_path)
    assert (found["done"], found["cut"]) == (1, ["none", "damaged"])


def test_the_state_of_a_sweep_whose_process_is_gone_is_told(tmp_path):
    with events.Events(tmp_path, 2, as_json=True) as told:
        told.say("started", job="a")
    assert sweep.status(tmp_path)["state"] == "running"
    (lines,) = (tmp_path / events.FOLDER).glob("*.jsonl")
    text = lines.read_text().replace(f'"process": {os.getpid()}', '"process": 4194303')
    lines.write_text(text + '{"event": "do')
    found = sweep.status(tmp_path)
    assert (found["state"], found["running"], found["cut"]) == ("died", {}, ["a"])
    (lines.parent / "notes.jsonl").write_text("mine")
    assert sweep.status(tmp_path)["state"] == "died", "another file is no sweep"
    lines.write_bytes(lines.read_bytes()[:-3] + b"\x00\xff\n")
    run = CliRunner().invoke(cli.app, ["status", str(tmp_path)])
    assert run.exit_code == 2
    assert re.search(r"jsonl: a line of it is no JSON .* remove the file", run.output)
    run = CliRunner().invoke(cli.app, ["status", str(tmp_path / "none")])
    assert run.exit_code == 3
    assert "no sweep has written here" in run.output


@pytest.mark.parametrize(
    ("there", "n_workers", "given", "want"),
    [
        (0, 4, {}, []),
        (2, 1, {}, []),
        (2, 2, {}, ["0", "1"]),
        (2, 3, {}, ["0", "1", "0"]),
        (2, 2, {"device": "cuda:1"}, []),
        (4, 2, {"n_devices": 2}, []),
    ],
)
def test_workers_have_a_gpu_each_unless_runs_choose(tmp_path, monkeypatch, there, n_workers, given, want):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local.preflight, "cuda_devices", lambda: there)
    jobs = [sweep.Job("2_3_extraction", given, tmp_path, "new")]
    assert local.gpus(jobs, n_workers) == want
    if want:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
        assert local.gpus(jobs, 2) == ["5", "7"]


@pytest.mark.parametrize("text", ["null", "[]", '"text"', "{}", "{", "\x00\x00"])
def test_a_note_of_a_failure_that_is_damaged_is_none(tmp_path, text):
    target = store.Run(tmp_path / "2_1" / "abc")
    batch.note_failure(target, "died")
    (target.partial / "failed.json").write_text(text)
    assert batch.failure(target) == ""


def test_looking_at_a_grid_imports_no_torch(tmp_path):
    path = written(tmp_path, SMALL)
    code = (
        f"import sys\nfrom pathlib import Path\nfrom anchorlens.sweep import grid\n"
        f"grid.jobs(grid.read(Path({str(path)!r})), Path({str(tmp_path)!r}))\n"
        "print(sorted({'torch', 'transformers', 'transformer_lens'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert grid.RELOADS[0] == "model"

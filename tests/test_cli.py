"""The command line says what went wrong by its exit code (0, 1, 2, 3, 130, 141), and as JSON where that is asked."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from anchorlens import __version__, batch, cli, parameters, store, sweep

TINY = Path(__file__).parent / "fixtures" / "gpt2-tiny"
FLOW = "2_1_information_flow"
WRITES = """\
import os
import pandas as pd
from pathlib import Path
pd.DataFrame({"value": [1.0]}).to_parquet(Path(folder) / "results.parquet")
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The default store, outputs/, is below the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small(tmp_path):
    """A function that writes a notebook with the parameters of the tour, but other code (and no torch)."""

    def write(code: str, name: str = "small") -> str:
        notebook = json.loads(parameters.find("0_tour").read_text(encoding="utf-8"))
        declaration = next(cell for cell in notebook["cells"] if cell["metadata"].get("tags") == ["parameters"])
        cell = {**declaration, "metadata": {}, "source": code, "id": "code"}
        path = tmp_path / f"{name}.ipynb"
        path.write_text(json.dumps({**notebook, "cells": [declaration, cell]}))
        return str(path)

    return write


def run(*arguments: str) -> Result:
    """``anchorlens run ...`` in this process."""
    return CliRunner().invoke(cli.app, ["run", *arguments])


def given(**values: object) -> list[str]:
    return [word for name, value in values.items() for word in ("-p", f"{name}={value}")]


def the_object(result: Result) -> dict[str, Any]:
    """What --json puts on stdout: one object and nothing else."""
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def command(*arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str], float]:
    """``anchorlens ...`` in a new process, which of the heavy modules it imported, and the CPU seconds it took."""
    code = (
        "import sys\nfrom anchorlens.cli import main\ntry:\n    main()\nfinally:\n"
        "    print('imported', *{'torch', 'transformer_lens', 'pandas'} & set(sys.modules), file=sys.stderr)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done, set(done.stderr.splitlines()[-1].split()[1:]), seconds


def test_help_imports_nothing_heavy():
    done, heavy, _ = command("--help")
    assert done.returncode == 0
    assert "run" in done.stdout
    assert heavy == set()


def test_the_version_is_shown():
    assert CliRunner().invoke(cli.app, ["--version"]).stdout.strip() == __version__


@pytest.mark.parametrize(
    ("notebook", "values", "code", "said"),
    [
        (
            "2_1_information_flows",
            {},
            2,
            f"ParameterError: no notebook '2_1_information_flows'; did you mean '{FLOW}'?",
        ),
        (FLOW, {"shotz": 2}, 2, "has no parameter 'shotz'; did you mean 'shots'?"),
        (FLOW, {"folder": "x"}, 2, "has no parameter 'folder'"),
        (FLOW, {"shots": "two"}, 2, "parameter shots='two' is str, expected int"),
        (FLOW, {"twin": "maybe"}, 2, "expected bool"),
        (FLOW, {"task": "sst3"}, 2, "TaskError: no task 'sst3'; did you mean 'sst2'?"),
        (FLOW, {"heads": "mean"}, 2, "ParameterError: heads='mean': it may be 'sum' or 'each'."),
        ("2_2_isolation", {"mask": "during"}, 2, "mask='during': it may be 'before' or 'after'."),
        ("2_2_isolation", {"depths": "-1"}, 2, "depths=[-1]: each counts layers"),
        ("2_3_extraction", {"against": "truth"}, 2, "against='truth': it may be 'predicted' or 'gold'."),
        ("3_1_reweighting", {"epochs": 0}, 2, "epochs=0: at least 1"),
        ("3_1_reweighting", {"learning_rate": 0}, 2, "learning_rate=0.0: it must be above 0"),
        ("3_1_reweighting", {"as_published": "true", "full_batch": "true"}, 2, "there is nothing to divide by"),
        ("3_2_compression", {"positions": "skip"}, 2, "it may be 'both', 'restart' or 'continue'."),
        ("3_2_compression", {"draws": -1}, 2, "draws=-1: at least 0"),
        ("3_3_diagnosis", {"layer": -2}, 2, "layer=-2: at least -1"),
        (FLOW, {"device": "gpu"}, 2, "ModelError: device='gpu'"),
        (FLOW, {"model": "."}, 2, "the folder has no config.json"),
        (FLOW, {"model": "no-tokenizer"}, 2, "the folder has no tokenizer"),
        (FLOW, {"model": "broken-config"}, 2, "config.json"),
        (FLOW, {"model": "gpt2--xl"}, 2, "gpt2--xl"),
        (FLOW, {"model": "./nowhere"}, 3, "MissingModelError: model './nowhere'"),
        (FLOW, {"model": "no-such/model"}, 3, "MissingModelError: model 'no-such/model' is not on this machine"),
        (FLOW, {"data": "none.csv"}, 3, "MissingRowsError: none.csv: no such file"),
        (FLOW, {"prompts": "none.jsonl"}, 3, "MissingRowsError: none.jsonl: no such file"),
        (FLOW, {"model": TINY, "task": "emo"}, 3, "MissingRowsError: task 'emo' has no rows of its own, on the hub"),
    ],
    ids=str,
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_what_cannot_be_run_ends_with_its_code_and_starts_nothing(tmp_path, notebook, values, code, said, as_json):
    for folder, left_out in (("no-tokenizer", "tokenizer.json vocab.json"), ("broken-config", "config.json")):
        (tmp_path / folder).mkdir()
        for path in TINY.iterdir():
            if path.name not in left_out.split():
                (tmp_path / folder / path.name).symlink_to(path)
    (tmp_path / "broken-config" / "config.json").write_text("{")
    result = run(notebook, *given(**values), *["--json"] * as_json)
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.output
    if as_json:
        shown = the_object(result)
        assert (shown["status"], shown["notebook"], shown["exit_code"]) == ("failed", notebook, code)
        assert said in shown["error"]
    else:
        assert result.stdout == ""
    assert not (tmp_path / "outputs").exists()


def test_a_command_that_cannot_be_read_is_bad_input():
    assert run(FLOW, "--no-such-option").exit_code == 2
    assert run(FLOW, "-p", "shots").exit_code == 2
    assert CliRunner().invoke(cli.app, ["list", "planets"]).exit_code == 2


def test_without_a_network_a_hub_id_fails_within_two_seconds_and_without_torch():
    attempts = [command("run", FLOW, "-p", "model=gpt2-xl") for _ in range(2)]
    for done, heavy, _ in attempts:
        assert done.returncode == 3
        assert "MissingModelError: model 'gpt2-xl' is not on this machine" in done.stderr
        assert "torch" not in heavy
    assert min(seconds for *_, seconds in attempts) < 2  # of CPU, the better of two: the machine may be busy


def test_without_a_network_rows_of_the_hub_fail_within_two_seconds_and_without_torch(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na,0\nb,1\n")
    words = given(model=TINY, data="someone/tickets#test", pool="rows.csv", label_token="first")
    attempts = [command("run", FLOW, *words) for _ in range(2)]
    for done, heavy, _ in attempts:
        assert done.returncode == 3
        assert "MissingRowsError: 'someone/tickets' is no file here; as a data set of the hub it is not" in done.stderr
        assert "torch" not in heavy
    assert min(seconds for *_, seconds in attempts) < 2  # of CPU, the better of two: the machine may be busy


def test_a_task_and_rows_of_ones_own_run_through_on_a_folder_of_a_model(tmp_path):
    (tmp_path / "my").mkdir()
    texts = ["late fee", "it crashed", "wrong sum", "no sound", "a joy", "slow"]
    rows = "".join(f"{n},{text},{('pay', 'tech')[n % 2]}\n" for n, text in enumerate(texts))
    (tmp_path / "my" / "tickets.csv").write_text(f"id,body,team\n{rows}")
    (tmp_path / "my" / "tickets.yaml").write_text(
        'template: "Ticket: {text}\\nTeam:"\nlabel_words: {pay: Billing, tech: Support}\nlabel_token: first\n'
        "text: body\nlabel: team\ndata: tickets.csv\n"
    )
    words = given(model=TINY, task="my/tickets.yaml", twin="false")
    result = run(FLOW, *words, "--json")
    assert result.exit_code == 0, result.output
    found = the_object(result)
    frame = pd.read_parquet(found["results"])
    assert sorted(frame["example"].unique()) == list(range(6))
    assert dict(frame.groupby("example")["gold"].first()) == {n: n % 2 for n in range(6)}
    assert the_object(run(FLOW, *words, "--json"))["cached"]
    (tmp_path / "my" / "tickets.csv").write_text(f"id,body,team\n{rows.replace('slow', 'fast')}")
    dry = the_object(run(FLOW, *words, "--dry-run", "--json"))
    assert not dry["cached"], "other rows are another run"


def test_a_store_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    result = run(FLOW, "--store", "file/below", "--json")
    assert result.exit_code == 2
    assert f"StoreError: output folder {tmp_path}/file/below/{FLOW}: cannot be written" in result.stderr
    assert the_object(result)["exit_code"] == 2


def test_an_interrupt_has_a_code_of_its_own(monkeypatch):
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "run", interrupted)
    result = run(FLOW, "--json")
    assert result.exit_code == 130
    assert the_object(result)["error"].startswith("interrupted; what was stored is kept: the same command goes on")


@pytest.mark.parametrize("words", [["list", "notebooks"], ["status", "{store}"], ["status", "{store}", "--json"]])
@pytest.mark.parametrize("runs", [1, 3000], ids=["little", "much"])
@pytest.mark.parametrize("both", [True, False], ids=["stdout and stderr", "stdout"])
def test_a_reader_that_goes_away_ends_a_command_without_a_word(tmp_path, words, runs, both):
    with sweep.Events(tmp_path, runs, as_json=True) as told:
        for n in range(runs):
            told.say("failed", job=f"job {n}", error="wrong " * 20)
    words = [word.format(store=tmp_path) for word in words]
    reading, writing = os.pipe()
    os.close(reading)
    with (tmp_path / "said").open("wb") as said:
        command = [sys.executable, "-m", "anchorlens.cli", *words]
        code = subprocess.run(command, stdout=writing, stderr=writing if both else said).returncode
    os.close(writing)
    assert ((tmp_path / "said").read_text(), code) == ("", 141)


def test_the_lists_name_what_there_is():
    shown = {what: CliRunner().invoke(cli.app, ["list", what]) for what in ("notebooks", "tasks", "models")}
    assert [result.exit_code for result in shown.values()] == [0, 0, 0]
    assert "  shots: int = 1  demonstrations per class" in shown["notebooks"].stdout
    assert "folder:" not in shown["notebooks"].stdout
    assert [line.split()[0] for line in shown["tasks"].stdout.splitlines()] == ["sst2", "trec", "agnews", "emo", "or"]
    (sst2, trec, _, emo, own) = (line.split("\t")[-1] for line in shown["tasks"].stdout.splitlines())
    assert sst2 == "rows: stanfordnlp/sst2#validation, demonstrations from stanfordnlp/sst2#train"
    assert trec.startswith("rows: CogComp/trec@refs/convert/parquet#test, demonstrations from CogComp/trec@refs")
    assert emo == "rows: none of its own, give files with data=FILE and pool=FILE"
    assert "path of a .yaml file" in own
    assert shown["models"].stdout.startswith("toy\ntoy-random\ntoy-unanchored\n")


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("raise ZeroDivisionError('by zero')", 1, "small: ZeroDivisionError: by zero"),
        ("from anchorlens.tasks import TaskError\nraise TaskError('bad row')", 2, "small: TaskError: bad row"),
        ("raise KeyboardInterrupt", 130, "small: KeyboardInterrupt"),
        ("import os\nos._exit(9)", 1, "small"),
    ],
    ids=["error", "bad input", "interrupt", "dead kernel"],
)
def test_a_notebook_that_fails_is_kept_and_ends_with_the_code_of_its_error(small, tmp_path, code, exit_code, said):
    result = run(small(code), "--json")
    assert result.exit_code == exit_code
    assert said in result.stderr
    shown = the_object(result)
    assert (shown["status"], shown["exit_code"]) == ("failed", exit_code)
    (folder,) = (tmp_path / "outputs" / "small").iterdir()
    assert folder.name.endswith(".partial"), "there is no result"
    assert (folder / "run.ipynb").exists()


def test_a_second_run_is_cached_unless_forced_and_braces_in_a_path_mean_nothing(small, tmp_path):
    notebook = small(WRITES, "name {with} braces")
    first, second, forced, other = (
        run(notebook, "--store", "a {model} b", "--json", *more)
        for more in ([], [], ["--force"], given(task="trec", label_words="a|b|c|d|e|f"))
    )
    assert [result.exit_code for result in (first, second, forced, other)] == [0, 0, 0, 0], first.output
    shown = [the_object(result) for result in (first, second, forced, other)]
    assert [each["cached"] for each in shown] == [False, True, False, False]
    assert shown[0]["folder"] == shown[1]["folder"] == shown[2]["folder"] != shown[3]["folder"]
    root = tmp_path / "a {model} b" / "name {with} braces"
    assert {each.name for each in root.iterdir()} == {Path(each["folder"]).name for each in shown}


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> tuple[Path, Result]:
    """A real run of section 2.1 on the toy, and the store it is in."""
    root = tmp_path_factory.mktemp("store")
    return root, run(FLOW, *given(limit=6, twin="false"), "--store", str(root), "--json")


def test_a_finished_run_is_one_json_object_that_says_where_it_is(flow):
    root, result = flow
    assert result.exit_code == 0, result.output
    shown = the_object(result)
    assert set(shown) == {"status", "folder", "notebook", "results", "cached"}
    assert (shown["status"], shown["notebook"], shown["cached"]) == ("ok", FLOW, False)
    folder = Path(shown["folder"])
    assert folder.parent == root / FLOW
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert shown["results"] == str(folder / "results.parquet")
    assert set(store.read(folder)["flow"]) == {"S_wp", "S_pq", "S_ww"}
    assert store.manifest(folder)["parameters"]["limit"] == 6
    assert not (folder / "twin.parquet").exists()


def test_a_run_that_was_done_before_is_returned_at_once(flow):
    root, result = flow
    again = run(FLOW, *given(twin="False", limit=6, seeds="[42]"), "--store", str(root), "--json")
    assert the_object(again) == {**the_object(result), "cached": True}
    plain = run(FLOW, *given(limit=6, twin="false"), "--store", str(root))
    assert plain.stdout.startswith(f"{FLOW}: done before\n")
    assert f"  {the_object(result)['results']}\n" in plain.stdout


def test_a_label_word_of_several_tokens_is_bad_input_though_only_the_notebook_can_see_it(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na joy from start to end,1\na slow drama,0\ni laughed,1\ndull,0\n")
    values = given(
        model=TINY, task="sst2", data="rows.csv", pool="rows.csv", label_words="Abbreviation|Positive", twin="false"
    )
    result = run(FLOW, *values, "--json")
    assert result.exit_code == 2
    assert "PromptError" in result.stderr
    assert "label word ' Abbreviation' is" in the_object(result)["error"]
    assert "label_token=first" in the_object(result)["error"]

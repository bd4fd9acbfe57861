"""The doctor says in two seconds, without a network and without torch, what is there, and what to do otherwise."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_hub import COMMIT, Asking, asking, silent  # noqa: F401 - asking is a fixture
from typer.testing import CliRunner

from anchorlens import browser, cli, doctor, dryrun, hub, parameters, room
from anchorlens.doctor import look
from anchorlens.findings import Asked, Finding, exit_code

FIXTURES = Path(__file__).parent / "fixtures"
TINY = FIXTURES / "gpt2-tiny"
ROWS = "text,label\nslow,Negative\na joy,Positive\nso dull,Negative\nfun,Positive\n"
LINES = ("packages", "architecture", "weights", "tokenizer", "hub", "data", "hub token", "disk", "browser")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path) -> str:
    (tmp_path / "rows.csv").write_text(ROWS)
    return "rows.csv"


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def found(**asked) -> dict[str, Finding]:
    return {each.what: each for each in look(Asked(**asked))}


def told(*arguments: str, code: int = 0) -> dict:
    run = CliRunner().invoke(cli.app, ["doctor", *arguments, "--json"])
    assert run.exit_code == code, run.output
    (line,) = run.stdout.splitlines()
    return json.loads(line)


def command(*arguments: str, **environment: str) -> tuple[str, int, float, float]:
    """What ``anchorlens doctor`` prints in a process of its own, its exit code, and the time to its first table's end.

    Seconds of the clock, and of the processor: others may be using the machine.
    """
    code = (
        "import builtins, sys, time\nfrom anchorlens.cli import main\nold = print\n"
        "def print(*said, **how):\n    old(*said, **how)\n"
        "    if ' browser ' in said[0]:\n        old('processor', time.process_time(), flush=True)\n"
        "builtins.print = print\n"
        "try:\n    main()\nfinally:\n"
        "    print('imported', sorted({'torch', 'transformers', 'transformer_lens'} & set(sys.modules)))"
    )
    started, wall, processor, lines = time.monotonic(), 0.0, 0.0, []
    words = [sys.executable, "-u", "-c", code, "doctor", *arguments]
    process = subprocess.Popen(words, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("processor"):
            wall, processor = time.monotonic() - started, float(line.split()[1])
        else:
            lines.append(line)
    return "".join(lines), process.wait(), wall, processor


@pytest.mark.parametrize("model", ["toy", "gpt2-xl"])
def test_with_a_hub_that_never_answers_it_is_told_within_two_seconds_and_without_torch(model, tmp_path):
    with silent() as address:
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        tries = [command("--model", model, **environment)]
        while tries[-1][-1] + hub.PATIENCE >= 2 and len(tries) < 4:  # others that use the machine make it seem more
            tries.append(command("--model", model, **environment))
        said, code, wall, processor = tries[-1]
    assert code == (0 if model == "toy" else 3)
    assert f"{address} does not answer within 1.2 s" in said
    assert said.splitlines()[-1] == "imported []"
    assert processor + hub.PATIENCE < 2, "as on a machine that nobody else uses"
    assert hub.PATIENCE < wall < 6
    assert ("TOO LARGE" in said or "fits" in said) is (model == "toy")


def test_all_that_the_toy_needs_is_there():
    taken = told()
    assert (taken["status"], taken["exit_code"]) == ("ok", 0)
    assert [each["what"] for each in taken["findings"]] == list(LINES)
    states = {each["what"]: each["state"] for each in taken["findings"]}
    assert {name for name, state in states.items() if state != "ok"} <= {"hub", "hub token", "browser"}
    assert {each["analysis"] for each in taken["analyses"]} == set(dryrun.ANALYSES["0_tour"])
    assert all(each["fits"] and each["peak"] > 0 and each["tokens"] > 0 for each in taken["analyses"])


def test_what_an_analysis_takes_is_what_its_dry_run_says(data):
    given = {"model": str(TINY), "data": data, "pool": data}
    taken = told("--model", str(TINY), "--data", data)
    for each in taken["analyses"]:
        path = parameters.find(each["notebook"])
        want = dryrun.estimate(path, parameters.check(path, given), Path("outputs"))
        assert each | want["analyses"][0] == each
        assert (each["fits"], each["prompts"]) == (want["fits"], want["prompts"]["number"])
    assert taken["dtype"] == "float32"
    assert told("--model", str(TINY), "--data", data, "--dtype", "bfloat16")["dtype"] == "bfloat16"


def test_what_does_not_fit_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000)
    said = CliRunner().invoke(cli.app, ["doctor"])
    assert said.exit_code == 0, "a small machine is nothing wrong with what was asked"
    assert said.stdout.count("TOO LARGE") == 6
    assert "-> take dtype=bfloat16, which halves it, fewer shots, a smaller model" in said.stdout


def test_rows_are_counted_by_class(data):
    assert found(model=str(TINY), data=data)["data"].found == "4 rows (Negative 2, Positive 2), rows.csv"


@pytest.mark.parametrize(
    ("changes", "what", "said", "todo", "code"),
    [
        ({"task": "sst3"}, "data", "no task 'sst3'", "did you mean 'sst2'?", 2),
        ({"data": "none.csv"}, "data", "none.csv: no such file", "did you mean 'one.csv'? Give a .csv", 3),
        ({"data": "one.csv"}, "data", "one.csv: 1 rows (Negative 1, Positive 0)", "give rows of Positive", 2),
        ({"data": "bad.csv"}, "data", "bad.csv, line 2: label 'x' is no class of task 'sst2'", "use the number", 2),
        ({"model": "./nowhere"}, "model", "found nothing there", "give such a folder", 3),
        ({"model": "gpt2--xl"}, "model", "cannot be a hub id", "", 2),
        ({"model": "two words"}, "model", "found nothing there", "give such a folder", 3),
        ({"revision": "v1"}, "model", "model 'toy' is not from the hub and has none", "leave it empty", 2),
        ({"model": "owner/name"}, "weights", "the hub cannot be reached", "connect to the network", 3),
        ({"model": "owner/name", "revision": "v7"}, "weights", "at revision 'v7' is not on this machine", "conn", 3),
        ({"model": "empty"}, "architecture", "the folder has no config.json", "give a folder", 2),
        ({"store": Path("one.csv")}, "disk", "one.csv cannot be written into", "name another folder with --store", 2),
    ],
)
def test_what_is_wrong_or_missing_has_its_line_its_remedy_and_its_code(tmp_path, changes, what, said, todo, code):
    (tmp_path / "one.csv").write_text("text,label\nslow,0\n")
    (tmp_path / "bad.csv").write_text("text,label\nslow,x\n")
    (tmp_path / "empty").mkdir()
    lines = found(**changes)
    assert said in lines[what].found
    assert todo in lines[what].todo
    assert (lines[what].code, exit_code(list(lines.values()))) == (code, code)
    assert lines[what].state == {2: "problem", 3: "missing"}[code]


@pytest.mark.parametrize(
    ("missing", "what", "said", "code"),
    [
        ("model.safetensors", "weights", "the folder has no weights", 2),
        ("tokenizer.json", "tokenizer", "vocab.json, made fast when it is loaded", 0),
        ("tokenizer.json merges.txt", "tokenizer", "vocab.json without merges.txt", 2),
        ("tokenizer.json vocab.json", "tokenizer", "the folder has no tokenizer", 2),
    ],
)
def test_each_part_of_a_folder_is_told_by_itself(folder, data, missing, what, said, code):
    for file in missing.split():
        (folder / file).unlink()
    lines = found(model=str(folder), data=data)
    assert said in lines[what].found
    assert {each.what for each in lines.values() if each.code} == ({what} if code else set())
    assert exit_code(list(lines.values())) == code


def test_an_architecture_that_transformer_lens_does_not_name_is_a_problem(folder, data):
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"architectures": ["MadeUpForCausalLM"]}))
    line = found(model=str(folder), data=data)["architecture"]
    assert (line.state, line.code) == ("problem", 2)
    assert "MadeUpForCausalLM, 4 layers of 64" in line.found
    assert "does not name it" in line.found


def test_a_model_that_the_hub_has_is_missing_with_its_size(asking: Asking, data):  # noqa: F811
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{asking.port}", "HF_HOME": str(asking.home)}
    environment |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    said, code, *_ = command("--model", "tiny/model", "--data", data, **environment)
    assert code == 3
    assert f"not on this machine; the hub has 1.33 MiB of it at commit {COMMIT[:12]}" in said
    assert asking.handler.fetched == [], "the doctor fetches nothing"
    assert "is gated: accept its licence" in command("--model", "gated/closed", "--data", data, **environment)[0]
    asking("tiny/model")
    said, code, *_ = command("--model", "tiny/model", "--data", data, **environment)
    assert code == 0
    assert "fits" in said


def test_a_large_file_of_rows_is_not_read(data, monkeypatch):
    monkeypatch.setattr(doctor, "READ", 10)
    line = found(model=str(TINY), data=data)["data"]
    assert (line.state, line.found) == ("ok", f"rows.csv: {len(ROWS)} B, not read here")
    assert "analyses" not in told("--model", str(TINY), "--data", data)


def test_a_task_file_brings_its_rows_along(data, monkeypatch):
    lines = ["template: 'Text: {text} Mood:'", "label_words: {Negative: bad, Positive: good}", f"data: {data}"]
    Path("mood.yaml").write_text("\n".join(lines))
    line = found(model=str(TINY), task="mood.yaml")["data"]
    assert line.state == "ok"
    assert line.found.startswith("4 rows (bad 2, good 2), ")
    taken = told("--model", str(TINY), "--task", "mood.yaml")
    assert {each["prompts"] for each in taken["analyses"]} == {4}
    monkeypatch.setattr(doctor, "READ", 10)
    assert "not read here" in found(model=str(TINY), task="mood.yaml")["data"].found
    assert "analyses" not in told("--model", str(TINY), "--task", "mood.yaml")


def test_too_little_room_on_the_disk_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "LEAST", 2**60)
    line = found()["disk"]
    assert (line.state, line.code) == ("problem", 3)


@pytest.mark.parametrize(("there", "state"), [(True, "ok"), (False, "missing")])
def test_a_browser_is_welcome_and_not_needed(monkeypatch, there, state):
    monkeypatch.setattr(browser, "has_browser", lambda: there)
    line = found()["browser"]
    assert (line.state, line.code) == (state, 0)


def test_what_is_wrong_comes_before_what_is_missing():
    lines = [Finding("a", "ok", ""), Finding("b", "missing", "", code=3), Finding("c", "problem", "", code=2)]
    assert [exit_code(lines[:n]) for n in (1, 2, 3)] == [0, 3, 2]


def test_the_hub_is_asked_once_and_the_environment_left_as_it_was(monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append(request.full_url)
        raise OSError

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub.urllib.request, "urlopen", refuse)
    before = dict(os.environ)
    lines = found(model="owner/name")
    assert [lines[what].code for what in ("weights", "data")] == [3, 3], "both would ask it"
    assert asked == ["http://127.0.0.1:9"]
    assert dict(os.environ) == before


def test_errors_of_the_second_part_have_their_exit_code(data):
    failed = told("--model", str(TINY), "--data", data, "--dtype", "int8", code=2)
    assert "dtype='int8'" in failed["error"]


def test_rows_for_demonstrations_that_are_missing_have_a_line_of_their_own(data):
    lines = ["template: 'Text: {text} Mood:'", "label_words: {Negative: bad, Positive: good}", f"data: {data}"]
    Path("mood.yaml").write_text("\n".join([*lines, "pool: none.csv"]))
    lines = found(model=str(TINY), task="mood.yaml")
    assert (lines["data"].state, lines["pool"].state, lines["pool"].code) == ("ok", "missing", 3)
    assert "none.csv: no such file" in lines["pool"].found


def test_what_a_run_would_refuse_when_it_begins_is_told_beside_the_rest(data):
    lines = ["template: 'Text: {text} Mood:'", "label_words: {Negative: terrible, Positive: good}", f"data: {data}"]
    Path("mood.yaml").write_text("\n".join(lines))
    run = CliRunner().invoke(cli.app, ["doctor", "--model", str(TINY), "--task", "mood.yaml", "--json"])
    said = json.loads(run.stdout.splitlines()[-1])
    assert (run.exit_code, said["findings"][-1]["what"]) == (2, "a run")
    assert "label word ' terrible' is 4 tokens ['Ġt', 'er', 'ri', 'ble']" in said["error"]

"""--dry-run: what a run would take, before anything is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import FIXTURES
from typer.testing import CliRunner

from anchorlens import batch, cli, drafts, dryrun, models, parameters, planner, preflight, room, tasks
from anchorlens.analyses import isolation
from anchorlens.batching import groups
from anchorlens.prompts import Encoder

ROWS = Path(parameters.PACKAGE) / "toy" / "rows" / "sst2_clean.jsonl"


def told(*arguments: str, code: int = 0) -> dict:
    run = CliRunner().invoke(cli.app, ["run", *arguments, "--dry-run", "--json"])
    assert run.exit_code == code, run.output
    return json.loads(run.stdout.splitlines()[-1])


def estimate(notebook: str, root: Path, **given) -> dict:
    path = parameters.find(notebook)
    return dryrun.estimate(path, parameters.check(path, given), root)


def test_nothing_is_loaded_not_even_torch(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom anchorlens import dryrun, parameters\n"
        "path = parameters.find('0_tour')\n"
        f"dryrun.estimate(path, parameters.check(path, {{}}), Path({str(tmp_path)!r}))\n"
        "print(sorted({'torch', 'transformers', 'transformer_lens'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("notebook", dryrun.ANALYSES)
def test_every_shipped_notebook_is_told_of_with_its_analyses(notebook, tmp_path):
    found = estimate(notebook, tmp_path)
    assert found["known"]
    assert [need["analysis"] for need in found["analyses"]] == list(dryrun.ANALYSES[notebook])
    assert all(0 < need["least"] <= need["peak"] and need["tokens"] > 0 for need in found["analyses"])
    assert (found["fits"], found["cached"]) == (True, False)
    assert set(parameters.notebooks()) == set(dryrun.ANALYSES)


def test_lengths_are_those_of_the_prompts_that_are_then_drawn(tmp_path):
    found = estimate("2_1_information_flow", tmp_path, seeds=[42, 43], shots=2)["prompts"]
    drawn = drafts.load(tasks.get("sst2"), toy=True, shots=2, seeds=[42, 43])
    lens = models.load("toy")
    lengths = [len(prompt.ids) for prompt in Encoder(lens.tokenizer, lens.cfg.n_ctx).all(drawn)[0]]
    assert found["number"] == len(lengths)
    # demonstrations are drawn anew, so means and extremes differ by chance
    assert found["mean"] == pytest.approx(sum(lengths) / len(lengths), rel=0.03)
    assert found["longest"] == pytest.approx(max(lengths), rel=0.1)


@pytest.fixture
def fixed(tmp_path) -> Path:
    """Two prompts in a file."""
    shown = [{"text": "a joy", "label": 1}, {"text": "slow", "label": 0}]
    queries = [{"text": text, "label": 1} for text in ("i laughed", "nothing to say , slow and dull")]
    lines = [json.dumps({"demonstrations": shown, "query": query}) for query in queries]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("bos", ["auto", "yes"])
@pytest.mark.parametrize("label_words", ["natural", "wonderful|terrible"])
def test_prompts_fixed_by_a_file_are_counted_as_they_are(tmp_path, fixed, bos, label_words):
    given = {"model": str(FIXTURES / "gpt2-tiny"), "prompts": str(fixed), "label_token": "all", "bos": bos}
    found = estimate("2_3_extraction", tmp_path, **given, label_words=label_words)
    lens, task = models.load(given["model"]), tasks.get("sst2", label_token="all")
    made, _ = Encoder(lens.tokenizer, 512, bos).all(drafts.load(task, prompts=str(fixed), label_words=label_words))
    (group,) = groups(made)
    lengths = [len(prompt.ids) + group.scoring.more for prompt in made]
    counted, (need,) = found["prompts"], found["analyses"]
    assert (counted["number"], counted["sets"], counted["longest"]) == (2, 1, max(lengths))
    assert counted["mean"] == pytest.approx(sum(lengths) / 2)
    rows = group.scoring.rows
    assert (counted["rows"], rows > 1) == (rows, label_words != "natural")
    asked = sum(length - group.length for length in lengths) * rows
    assert need["tokens"] == pytest.approx(group.length + asked)
    assert (need["batch"], need["batch_tokens"]) == (2, 2 * rows * (max(lengths) - group.length))


def test_a_folder_is_described_by_its_config_and_dtype(tmp_path):
    given = {"model": str(FIXTURES / "gptj-tiny"), "data": str(ROWS), "pool": str(ROWS), "dtype": "bfloat16"}
    found = estimate("2_3_extraction", tmp_path, **given)
    shape = planner.of_config(json.loads((FIXTURES / "gptj-tiny" / "config.json").read_text()), "bfloat16")
    assert found["model"]["weights"] == planner.weight_bytes(shape)
    assert (found["model"]["n_layers"], found["model"]["rotary"], found["model"]["dtype"]) == (3, 8, "bfloat16")
    assert found["memory"] == planner.memory_bytes(shape, found["prompts"]["shown"][1])


def test_too_little_memory_is_told_and_is_no_error(tmp_path, monkeypatch):
    weights = estimate("2_1_information_flow", tmp_path)["model"]["weights"]
    monkeypatch.setattr(room, "free_bytes", lambda device: weights + 1000)
    found = estimate("2_1_information_flow", tmp_path)
    assert not found["fits"]
    assert found["analyses"][0]["checkpoint"]
    assert "does NOT fit" in dryrun.report(found)
    assert told("2_1_information_flow", "--store", str(tmp_path))["fits"] is False


def test_a_model_that_fits_once_but_not_twice_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(dryrun.planner, "weight_bytes", lambda shape: 10**12)
    monkeypatch.setattr(room, "free_bytes", lambda device: 19 * 10**11)
    found = estimate("2_1_information_flow", tmp_path)
    assert not found["fits"]
    assert "loading takes 1863 GiB for a moment: the model is there twice" in dryrun.report(found)
    monkeypatch.setattr(room, "free_bytes", lambda device: 21 * 10**11)
    assert estimate("2_1_information_flow", tmp_path)["fits"]


def test_prompts_that_the_model_cannot_read_are_told_with_what_happens_to_them(tmp_path):
    found = estimate("2_1_information_flow", tmp_path, shots=60)
    assert found["too_long"]
    assert "some prompts are TOO LONG, the model reads at most 256 tokens: with too_long=error" in dryrun.report(found)
    assert not estimate("2_1_information_flow", tmp_path)["too_long"]


def test_the_batch_is_the_one_that_was_asked_for(tmp_path):
    (need,) = estimate("2_3_extraction", tmp_path, batch_tokens=100)["analyses"]
    longest = estimate("2_3_extraction", tmp_path)["prompts"]["asked"][1]
    assert (need["batch"], need["batch_tokens"]) == (100 // longest, 100 // longest * longest)


def test_work_is_told_in_passes_through_all_layers_by_hand(tmp_path):
    twice, once = (estimate("2_1_information_flow", tmp_path, twin=twin)["analyses"][0] for twin in (True, False))
    assert twice["tokens"] == 2 * once["tokens"]
    found = estimate("2_2_isolation", tmp_path, depths=[2])
    ask, shown = found["prompts"]["asked"][0], found["prompts"]["shown"][0]
    # 8 layers, two arms: demonstrations from layer 0 and from 6 on, queries from 1 and from 7 on
    want = shown * (1 + 2 * 10 / 8) + found["prompts"]["number"] * ask * (1 + 2 * 8 / 8)
    assert found["analyses"][0]["tokens"] == pytest.approx(want)


def test_bad_input_has_its_exit_code(tmp_path):
    assert "shotz" in told("2_3_extraction", "-p", "shotz=1", code=2)["error"]
    assert told("2_3_extraction", "-p", "model=./nowhere", code=3)["status"] == "failed"


@pytest.mark.parametrize(
    ("notebook", "given", "said"),
    [
        ("2_2_isolation", {"depths": [1, 99]}, r"depths=\[99\]: this model has 8 layers, so each may be 0 to 8"),
        ("3_3_diagnosis", {"layer": 8}, "layer=8: this model has layers 0 to 7"),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused_before_it_is_loaded(tmp_path, notebook, given, said):
    with pytest.raises(parameters.ParameterError, match=said):
        estimate(notebook, tmp_path, **given)


def test_a_result_that_is_there_is_told(tmp_path, monkeypatch):
    target = Path(estimate("2_3_extraction", tmp_path)["folder"])
    target.mkdir(parents=True)
    (target / "manifest.json").write_text("{}")
    assert not estimate("2_3_extraction", tmp_path)["cached"], "a result without its table is damaged"
    pd.DataFrame({"example": [0]}).to_parquet(target / "results.parquet")
    assert estimate("2_3_extraction", tmp_path)["cached"]
    assert batch.run("2_3_extraction", {}, root=tmp_path).cached, "and it is where a run would look"
    assert (
        "done before"
        in CliRunner().invoke(cli.app, ["run", "2_3_extraction", "--dry-run", "--store", str(tmp_path)]).output
    )


def test_depths_of_isolation_are_those_of_the_analysis():
    assert dryrun.DEPTHS == isolation.DEPTHS


def test_a_model_that_one_gpu_does_not_hold_is_told_of_over_several(tmp_path, monkeypatch):
    weights = estimate("2_3_extraction", tmp_path)["model"]["weights"]
    monkeypatch.setattr(preflight, "cuda_devices", lambda: 3)
    monkeypatch.setattr(room, "free_bytes", lambda device: weights if device.startswith("cuda") else 2**40)
    monkeypatch.setattr(preflight, "resolve_device", lambda device: device)
    found = estimate("2_3_extraction", tmp_path, device="cuda")
    assert (found["n_devices"], found["free"]) == (2, 2 * weights)
    assert f"device cuda and the next 1: {dryrun._size(2 * weights)} free" in dryrun.report(found)
    assert estimate("2_3_extraction", tmp_path, device="cuda", n_devices=3)["n_devices"] == 3
    with pytest.raises(preflight.ModelError, match="n_devices=4: from 'cuda' on there are 3 GPUs"):
        estimate("2_3_extraction", tmp_path, device="cuda", n_devices=4)

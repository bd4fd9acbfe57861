"""The whole spine on the released code's prompts: file -> command's runner -> kernel -> parquet, to full precision."""

import json

import pandas as pd
import pytest
import torch
from conftest import FIXTURES

from anchorlens import batch

# as in test_information_flow: S_pq is stored in full, the others were rounded to float32
TOLERANCES = {"S_wp": 2e-7, "S_pq": 1e-9, "S_ww": 2e-7}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """2_1_information_flow on gpt2-tiny in float64 with all of SST-2's cases (1 and 2 shots) in one file."""
    stored = json.loads((FIXTURES / "saliency.json").read_text())
    cases = stored["sst2.s1"]["cases"] + stored["sst2.s2"]["cases"]
    folder = tmp_path_factory.mktemp("released")
    lines = [
        {"demonstrations": case["demonstrations"], "query": {"text": case["query"], "label": case["gold"]}}
        for case in cases
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {
        "model": str(FIXTURES / "gpt2-tiny"),
        "task": "sst2",
        "prompts": str(folder / "prompts.jsonl"),
        "dtype": "float64",
        "twin": False,
    }
    return cases, batch.run("2_1_information_flow", given, root=folder / "store", bar=False)


def test_flows_in_the_store_are_those_of_the_released_code(run):
    cases, done = run
    frame = pd.read_parquet(done.results)
    for row, case in enumerate(cases):
        for flow, tolerance in TOLERANCES.items():
            want = torch.tensor(case[flow], dtype=torch.float64)
            mine = frame[(frame["example"] == row) & (frame["flow"] == flow)].sort_values("layer")["value"]
            error = (torch.tensor(mine.to_numpy()) - want).abs().max() / want.abs().max()
            assert error <= tolerance, f"{case['id']} {flow}: {error:.1e}"


def test_rows_name_prompts_by_line_and_no_seed(run):
    cases, done = run
    frame = pd.read_parquet(done.results)
    assert set(frame["seed"]) == {-1}
    assert sorted(frame["example"].unique()) == list(range(len(cases)))
    assert frame.groupby("example")["gold"].first().tolist() == [case["gold"] for case in cases]


def test_predictions_are_the_released_codes(run):
    cases, done = run
    predicted = pd.read_parquet(done.results).groupby("example")["predicted"].first().tolist()
    assert predicted == [max(range(2), key=case["label_logits"].__getitem__) for case in cases]

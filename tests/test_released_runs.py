"""Sections 2.2 to 3.3 on the released code's prompts: file -> command's runner -> kernel -> parquet."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import load_file

from anchorlens import batch, store
from anchorlens.analyses import compression, diagnosis, extraction, isolation, reweighting
from anchorlens.analyses.compression import cost

RELEASED = FIXTURES / "released" / "gpt2"
CASE = "sst2.s1"


def stored(name: str) -> dict:
    return json.loads((RELEASED / f"{name}.json").read_text())


def write(path: Path, demonstrations: list, queries: list) -> str:
    lines = [json.dumps({"demonstrations": demonstrations, "query": query}) for query in queries]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def run(tmp_path, warm_kernel) -> Callable[..., Path]:
    """Run a notebook on gpt2-tiny in float64 with the prompts of SST-2; its folder."""

    def do(notebook: str, **more) -> Path:
        case = stored("icl_and_isolation")[CASE]
        prompts = write(tmp_path / "prompts.jsonl", case["demonstrations"], case["queries"])
        given = {"model": str(FIXTURES / "gpt2-tiny"), "task": "sst2", "prompts": prompts, "dtype": "float64", **more}
        with patch.dict(os.environ):
            del os.environ["PYTEST_CURRENT_TEST"]  # whose changes make a kernel start anew
            return batch.run(notebook, given, root=tmp_path / "store", bar=False, kernel=warm_kernel).folder

    return do


def table(folder: Path, columns: dict[str, str], name: str = "results") -> pd.DataFrame:
    frame = store.read(folder, name)
    assert {column: str(kind) for column, kind in frame.dtypes.items()} == columns
    return frame


@pytest.mark.slow
def test_isolation(run):
    folder = run("2_2_isolation", depths=[1, 2])
    frame = table(folder, isolation.COLUMNS)
    case = stored("icl_and_isolation")[CASE]
    clean = frame.drop_duplicates("example")
    assert clean["predicted_clean"].tolist() == case["predicted"]
    for end, depth in (("first", 1), ("first", 2), ("last", 1), ("last", 2)):
        want = case["variants"][f"label_{end}_{depth}"]
        mine = frame[(frame["arm"] == "label") & (frame["end"] == end) & (frame["depth"] == depth)]
        assert mine["predicted"].tolist() == want["predicted"]
        assert mine["label_loyal"].mean() == pytest.approx(want["label_loyalty"])
        assert mine["word_loyalty"].mean() == pytest.approx(want["word_loyalty_top5"], abs=1e-12)
    scores = store.read(folder, "scores").set_index("arm")
    assert scores.loc["no isolation", "accuracy"] == pytest.approx(case["accuracy"])


def test_extraction(run):
    folder = run("2_3_extraction")
    frame, summary = table(folder, extraction.COLUMNS), table(folder, extraction.SUMMARY, "summary")
    want = load_file(RELEASED / "deep.safetensors")[f"{CASE}.A"]  # [example label layer]
    ordered = frame.sort_values(["example", "label", "layer"])["attention"]
    mine = torch.tensor(ordered.to_numpy()).reshape(want.shape)
    torch.testing.assert_close(mine, want, rtol=0, atol=1e-9)  # float64, loaded from float32 weights on both sides
    assert summary["auc"].tolist() == pytest.approx(stored("deep")[CASE]["AUCROC"], abs=1e-12)
    assert summary["contribution"].tolist() == pytest.approx(stored("deep")[CASE]["R"], abs=1e-12)


@pytest.mark.slow
def test_reweighting(run, tmp_path):
    case = stored("reweighting")["sst2.heads4.lr0.01"]
    trained = write(tmp_path / "train.jsonl", case["demonstrations"], case["train"])
    folder = run("3_1_reweighting", train_prompts=trained)
    frame = table(folder, reweighting.COLUMNS)
    losses, beta = table(folder, reweighting.LOSSES, "losses"), table(folder, reweighting.BETA, "beta")
    assert len(losses) == 10 * len(case["train"])
    assert len(beta) == 4 * 4 * 2
    vanilla = frame[frame["arm"] == "vanilla"]
    plain = torch.tensor(case["label_logits_without"]).argmax(-1).tolist()
    assert vanilla["predicted"].tolist() == plain
    assert {"beta", "kshot"} <= set(frame["arm"])


@pytest.mark.slow
def test_compression(run):
    folder = run("3_2_compression", draws=2)
    frame = table(folder, compression.COLUMNS)
    table(folder, cost.COLUMNS, "cost")
    variants = stored("compression")[CASE]["variants"]
    for arm, positions, name in (
        ("icl", "none", "icl"),
        ("hidden_anchor", "restart", "hidden_anchor.offset0"),
        ("hidden_anchor", "continue", "hidden_anchor.offset"),
        ("text_anchor", "none", "text_anchor"),
    ):
        mine, want = frame[(frame["arm"] == arm) & (frame["positions"] == positions)], variants[name]
        assert mine["predicted"].tolist() == want["predicted"]
        assert mine["label_loyal"].mean() == pytest.approx(want["label_loyalty"])
        assert mine["word_loyalty"].mean() == pytest.approx(want["word_loyalty_top5"], abs=1e-12)
        assert mine["correct"].mean() == pytest.approx(want["accuracy"])


def test_diagnosis(run, tmp_path):
    # the first set's prompts, as the observed confusion is taken from them
    released = stored("distances")["trec"]
    queries = [text.rsplit("Question: ", 1)[1].removesuffix("\nAnswer Type:") for text in released["query_prompts"]]
    asked = [{"text": text, "label": gold} for text, gold in zip(queries, released["gold"], strict=True)]
    prompts = write(tmp_path / "trec.jsonl", released["demonstration_sets"][0], asked)
    folder = run("3_3_diagnosis", task="trec", prompts=prompts, layer=1)
    frame, agreement = table(folder, diagnosis.COLUMNS), table(folder, diagnosis.AGREEMENT, "agreement")
    assert set(frame["layer"]) == {0, 1, 2, 3}
    assert set(agreement["n_components"]) == {5, 10}
    one = frame[(frame["layer"] == 0) & (frame["n_components"] == 10)]
    observed = one.pivot_table(index="label_a", columns="label_b", values="confusion_observed", dropna=False)
    want = torch.tensor(released["confusion_true_rounded2"], dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(observed.to_numpy()).round(decimals=2), want, rtol=0, atol=0.0051)

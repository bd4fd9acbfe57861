"""What half precision does to each metric, measured on the shipped toy: ``python -m tests.benchmarks.dtypes``.

Prints a table in Markdown (docs/dtypes.md holds one) and, with ``--out``, writes it as JSON.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from anchorlens import drafts, models, passes, readings, tasks
from anchorlens.analyses import compression, diagnosis, extraction, information_flow, isolation
from anchorlens.batching import groups
from anchorlens.prompts import Encoder

TASKS = ("sst2", "trec", "agnews", "emo")
HALVES = ("bfloat16", "float16")


def measured(task: str, dtype: str, limit: int) -> dict[str, pd.Series | pd.DataFrame]:
    """Every metric of one task, in one precision."""
    lens = models.load("toy", dtype=dtype)
    encode = Encoder(lens.tokenizer, lens.cfg.n_ctx)
    load = partial(drafts.load, tasks.get(task), toy=True, limit=limit)
    own, _ = encode.all(load(fresh=True))
    drawn = load(fresh=False)
    shared, _ = encode.all(drawn)
    bare, _ = encode.all(map(drafts.without_texts, drawn))
    (group,) = groups(shared)
    flow = pd.concat(information_flow.information_flow(lens, batch) for batch in passes.plan(lens, own))
    mean = flow.pivot_table(index="layer", columns="flow", values="value")
    n = lens.cfg.n_layers
    cut = isolation.isolation(lens, group, isolation.settings(n))
    layer = round(2 * n / 3)
    read = readings.read(lens, group, vectors=[layer])
    seen = extraction.summary(extraction.extraction(read))
    kept = compression.compression(lens, group, texts=bare, positions="continue")
    distances = diagnosis.diagnosis([read])
    loyal = ["label_loyal", "word_loyalty"]
    return {
        "answers": cut.drop_duplicates("example").set_index("example")["predicted_clean"],
        "S shares": mean.div(mean.sum(axis=1), axis=0),
        "isolation": cut.groupby(["arm", "end", "depth"])[loyal].mean(),
        "AUCROC": seen.set_index("layer")["auc"],
        "R": seen.set_index("layer")["contribution"],
        "compression": kept.groupby("arm")[loyal].mean(),
        "distances": distances.set_index(["label_a", "label_b"])["confusion_predicted"],
    }


def changes(limit: int, names: tuple[str, ...] = TASKS) -> pd.DataFrame:
    """The largest change against float32 of each metric: over tasks, and over layers, settings or arms."""
    rows = []
    for task in names:
        exact = measured(task, "float32", limit)
        for dtype in HALVES:
            half = measured(task, dtype, limit)
            for metric, want in exact.items():
                change = (half[metric] != want).mean() if metric == "answers" else (half[metric] - want).abs()
                rows.append((task, dtype, metric, float(change if metric == "answers" else change.to_numpy().max())))
    frame = pd.DataFrame(rows, columns=pd.Index(["task", "dtype", "metric", "change"]))
    return frame.pivot_table(index="metric", columns="dtype", values="change", aggfunc="max", sort=False)


WHAT = {
    "answers": "share of answers that differ",
    "S shares": "share of S_wp, S_pq or S_ww in a layer (2.1)",
    "isolation": "label or word loyalty of an isolation setting (2.2)",
    "AUCROC": "AUCROC of a layer (2.3)",
    "R": "cumulative R of a layer (2.3)",
    "compression": "label or word loyalty of a compression arm (3.2)",
    "distances": "predicted confusion of two classes, 0 to 1 (3.3)",
}


def markdown(table: pd.DataFrame) -> str:
    """The table as it stands in the documentation."""
    lines = [f"| largest change against float32 | {' | '.join(table.columns)} |", f"|---|{'---|' * table.shape[1]}"]
    for metric, row in table.iterrows():
        lines.append(f"| {WHAT[str(metric)]} | {' | '.join(f'{value:.4f}' for value in row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=200, help="queries per task")
    parser.add_argument("--out", help="JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = changes(given.limit)
    print(markdown(table))
    if given.out:
        Path(given.out).write_text(json.dumps(table.to_dict(), indent=2) + "\n")


if __name__ == "__main__":
    main()

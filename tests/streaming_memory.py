"""Runs 20,000 toy prompts through section 2.1's path and prints resident bytes after so many; run by test_streaming.

    python tests/streaming_memory.py FOLDER [prompts|rows|nothing]

The last word is what a careless program would hold on to.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
from conftest import random_model

from anchorlens import drafts, passes, preflight, store, tasks
from anchorlens.analyses import information_flow
from anchorlens.batch import Session
from anchorlens.prompts import Encoder
from anchorlens.windows import Window, windows

PROMPTS, EARLY = 20_000, 2_000


def main(folder: Path, holding: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(preflight.locate("toy").folder, local_files_only=True)
    # many rows a prompt, and little to compute
    lens = random_model(d_vocab=len(tokenizer), n_ctx=256, n_layers=6, d_model=8, d_head=4, d_mlp=16)
    drawn = drafts.load(tasks.SST2, toy=True, seeds=range(100))[:PROMPTS]
    ready, _ = windows(Encoder(tokenizer, 256), drawn)
    plan = partial(passes.plan, lens, batch_tokens=4096)
    measure = passes.over(partial(information_flow.information_flow, lens), plan)
    done, resident, held = 0, {}, []

    def watched(window: Window) -> Iterator[pd.DataFrame]:
        nonlocal done
        for frame in measure(window):
            if holding == "rows":
                held.append(frame)
            yield frame
        if holding == "prompts":
            held.extend(window)
        done += len(window)
        resident[done] = psutil.Process().memory_info().rss

    Session(store.Run(folder)).gather(watched, ready, information_flow.COLUMNS)
    early = next(at for at in resident if at >= EARLY)
    print(json.dumps({"prompts": done, "windows": len(ready), "grown": resident[done] - resident[early]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

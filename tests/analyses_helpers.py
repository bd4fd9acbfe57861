"""Each analysis of a few prompts, in one call: for tests of where a model is rather than of what it finds."""

import pandas as pd
import torch
from compression_helpers import DRAFTS, encoded

from anchorlens import passes, readings
from anchorlens.analyses import compression, diagnosis, extraction, information_flow, isolation
from anchorlens.analyses.reweighting import compare, prepared, train
from anchorlens.batching import groups
from anchorlens.drafts import Draft
from anchorlens.models import Lens


def everything(
    lens: Lens, tokenizer, drafts: list[Draft] = DRAFTS, *, compressed: bool = True
) -> dict[str, pd.DataFrame]:
    """Each analysis of a few prompts; compression if ``compressed``, diagnosis where queries and keys are shown."""
    prompts = [prompt for prompt in encoded(tokenizer, drafts) if prompt.gold is not None]
    (group,) = groups(prompts)
    (batch,) = passes.plan(lens, prompts, 10_000)
    layers = range(lens.cfg.n_layers) if lens.backend == "hooked" or lens.kind.name != "gpt_neox" else ()
    reading = readings.read(lens, group, batch_tokens=10_000, vectors=layers)
    training = prepared(lens, group, batch_tokens=10_000, full_batch=True)
    trained = train(lens, training, epochs=2, full_batch=True)
    compared = compare(lens, group, trained.beta, batch_tokens=10_000)
    found = {
        "information flow": information_flow.information_flow(lens, batch),
        "isolation": isolation.isolation(lens, group, isolation.settings(3, [1, 2]), batch_tokens=10_000),
        "extraction": extraction.extraction(reading),
        "beta": pd.DataFrame(trained.beta.cpu().flatten().numpy()),
        "answers": pd.DataFrame(torch.cat([each.cpu() for each in compared]).numpy()),
    }
    if compressed:
        found["compression"] = compression.compression(lens, group, draws=1, batch_tokens=10_000)
    if layers:
        found["keys"] = pd.DataFrame(reading.keys.flatten(1).numpy())
        found["diagnosis"] = diagnosis.diagnosis([reading], n_components=(2, 5))
    return found

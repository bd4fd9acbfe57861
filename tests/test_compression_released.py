"""Section 3.2 against the released code's own numbers: kept tokens, logits, predictions and loyalties."""

import pytest
import torch
from released import both, drafts_of, error, group_of, model, numbers, prompts_of, tensors

from anchorlens import passes
from anchorlens.analyses import compression
from anchorlens.analyses.compression import kept
from anchorlens.drafts import without_texts

MODELS = both(("gpt2", "float64"), ("gpt2", "float32"), ("gptj", "float32"))
# float64: logits were stored as float32 (2^-24 = 6e-8). GPT-J was computed in float32.
LIMITS = {("gpt2", "float64"): 2e-7, ("gpt2", "float32"): 2e-4, ("gptj", "float32"): 2e-4}
RULES = {"offset0": "restart", "offset": "continue"}


@pytest.fixture(params=[(*each, key) for each in MODELS for key in numbers(each[0], "compression")], ids="-".join)
def case(request):
    family, dtype, backend, key = request.param
    lens, entry = model(family, dtype, backend), numbers(family, "compression")[key]
    return lens, family, dtype, key, entry, group_of(lens, key, entry)


def logits(lens, group, memory) -> torch.Tensor:
    """All logits at the target of each query [query vocabulary], in ragged batches of 4."""
    found = {}
    for asked in group.queries(lambda _: 4):
        final = lens.read(memory, asked.tokens, asked.mask)
        found |= dict(zip(asked.example.tolist(), lens.all_logits(final), strict=True))
    return torch.stack([found[example] for example in sorted(found)])


def positions_of(group, entry, name):
    """Which tokens a variant keeps, by our own rules but for the draw."""
    if name == "hidden_anchor":
        return kept.by_role(group, "hidden_anchor")
    return kept.with_random(group, entry["variants"][f"{name}.offset"]["chosen"])


def test_prompts_are_token_for_token_those_of_the_released_code(case):
    lens, _, _, key, entry, group = case
    assert list(group.prompts[0].ids) == entry["first_prompt_ids"]
    assert [list(prompt.ids[group.length :]) for prompt in group.prompts] == entry["query_ids"]
    texts = prompts_of(lens, [without_texts(draft) for draft in drafts_of(key, entry)])
    assert [prompt.text for prompt in texts] == entry["text_anchor_prompts"]


def test_kept_tokens_are_those_of_the_released_code(case):
    *_, entry, group = case
    for as_published in (False, True):
        assert kept.by_role(group, "hidden_anchor", as_published=as_published).tolist() == entry["kept_positions"]
    assert kept.candidates(group) == entry["random_candidates"]
    assert sorted(group.anchors.tolist()) == entry["anchor_positions_sorted"]
    assert group.length == entry["position_offset"]
    for name, variant in entry["variants"].items():
        if "chosen" in variant:
            assert kept.with_random(group, variant["chosen"]).tolist() == variant["kept_positions"], name


def test_logits_are_those_of_the_released_code(case):
    lens, family, dtype, key, entry, group = case
    stored, memory = tensors(family, "compression"), passes.demonstrate(lens, group).memory
    for name in entry["variants"]:
        if name == "text_anchor":
            texts = prompts_of(lens, [without_texts(draft) for draft in drafts_of(key, entry)])
            found = torch.stack([lens(torch.tensor([prompt.ids]))[0, -1] for prompt in texts])
        elif name == "icl":
            found = logits(lens, group, memory)
        else:
            arm, offset = name.split(".")
            positions = positions_of(group, entry, arm)
            first = group.length if RULES[offset] == "continue" else 0
            found = logits(lens, group, lens.keep(memory, positions, first, longest=group.longest))
        wrong = error(found[:, stored["columns"]], stored[f"{key}.{name}.logits_cols"])
        if f"{key}.{name}.logits" in stored:
            wrong = max(wrong, error(found, stored[f"{key}.{name}.logits"]))
        assert wrong <= LIMITS[family, dtype], f"{name}: {wrong:.1e}"
        probabilities = found[:, group.labels].double().softmax(-1)
        wrong = error(probabilities, torch.tensor(entry["variants"][name]["label_probs"], dtype=torch.float64))
        # stored in full; float32 and GPT-J as above, since a softmax of label logits of 1 to 10 multiplies errors
        assert wrong <= (1e-12 if (family, dtype) == ("gpt2", "float64") else 2e-4), f"{name}: {wrong:.1e}"


def test_answers_and_loyalties_are_those_of_the_released_code(case):
    lens, family, dtype, key, entry, group = case
    texts = prompts_of(lens, [without_texts(draft) for draft in drafts_of(key, entry)])
    chosen = [
        each["chosen"] for name, each in entry["variants"].items() if name.endswith("offset") and "chosen" in each
    ]
    frame = compression.compression(lens, group, texts, chosen=chosen, batch_tokens=60)
    assert len(chosen) == 3
    for name, variant in entry["variants"].items():
        arm, _, offset = name.partition(".")
        rows = frame[frame["positions"] == RULES.get(offset, "none")]
        if arm.startswith("hidden_random"):
            rows = rows[(rows["arm"] == "hidden_random") & (rows["draw"] == int(arm[-1]))]
        else:
            rows = rows[rows["arm"] == arm]
        assert rows["predicted"].tolist() == variant["predicted"], name
        assert rows["correct"].mean() == pytest.approx(variant["accuracy"], abs=1e-12)
        assert rows["label_loyal"].mean() == pytest.approx(variant["label_loyalty"], abs=1e-12)
        # in float32 two tokens at the border of the five may change places
        off = abs(rows["word_loyalty"].mean() - variant["word_loyalty_top5"])
        assert off <= (1e-12 if (family, dtype) == ("gpt2", "float64") else 0.05), name

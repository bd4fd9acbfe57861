"""Section 3.3 against the released code's own numbers: both models, in both dtypes."""

import pytest
import released
import torch

from anchorlens import readings, tasks
from anchorlens.analyses import diagnosis
from anchorlens.batching import groups
from anchorlens.drafts import Draft
from anchorlens.rows import Example

# largest error over largest value. GPT-2 was run in float64; its keys and queries are stored in float32 (rounding
# 6e-8), its distances in full. GPT-J was run in float32, whose rounding over the layers is about 1e-5.
TOLERANCES = {
    ("gpt2", "float64"): 1e-6,
    ("gpt2", "float32"): 2e-4,
    ("gptj", "float64"): 2e-4,
    ("gptj", "float32"): 2e-4,
}
MODELS = released.both(("gpt2",), ("gptj",))
CASES = [(*model, task) for model in MODELS for task in released.numbers(model[0], "distances")]


@pytest.fixture(scope="module", params=["float64", "float32"])
def dtype(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=CASES, ids=".".join)
def case(request, dtype):
    """Readings of the first set with all queries, and of all sets; the numbers, the vectors, what error is allowed."""
    family, backend, name = request.param
    stored, task = released.numbers(family, "distances")[name], tasks.get(name)
    lens, (before, after) = released.model(family, dtype, backend), task.template.split("{text}")
    queries = [
        Example(text.rsplit(before, 1)[1].removesuffix(after), label, row)
        for row, (text, label) in enumerate(zip(stored["query_prompts"], stored["gold"], strict=True))
    ]
    sets = [tuple(Example(each["text"], each["label"]) for each in one) for one in stored["demonstration_sets"]]
    spread = [Draft(task, sets[row % len(sets)], query) for row, query in enumerate(queries)]
    prompts = released.prompts_of(lens, spread)
    assert [prompt.text for prompt in prompts] == stored["query_prompts"]
    first = released.prompts_of(lens, [Draft(task, sets[0], query) for query in queries])
    layers = range(lens.cfg.n_layers)
    own, *rest = (readings.read(lens, group, vectors=layers) for group in (*groups(first), *groups(prompts)))
    vectors = {kind: released.tensors(family, "distances")[f"{name}.{kind}"] for kind in ("keys", "queries")}
    return own, rest, stored, vectors, TOLERANCES[family, dtype]


def test_keys_and_queries_are_those_of_the_released_code(case):
    _, spread, _, vectors, tolerance = case
    for n, reading in enumerate(spread):
        keys = torch.tensor(diagnosis.class_keys(reading))
        assert released.error(keys, vectors["keys"][:, :, n]) <= tolerance
        asked = [prompt.example for prompt in reading.group.prompts]
        assert released.error(reading.queries.transpose(0, 1), vectors["queries"][:, asked]) <= tolerance


def test_distances_and_confusions_are_those_of_the_released_code(case):
    own, spread, stored, _, tolerance = case
    n = stored["n_components"]
    for as_published, wanted in ((False, "normalised"), (True, "notebook_rounded2_diag1")):
        frame = diagnosis.diagnosis([own], spread, n_components=[5, n], as_published=as_published)
        here = frame[frame["n_components"] == n]
        for layer, want in enumerate(stored["layers"]):
            got = {
                value: torch.tensor(diagnosis._matrix(here[here["layer"] == layer], value))
                for value in ("distance", "confusion_predicted", "confusion_observed")
            }
            published = torch.tensor(want[wanted], dtype=torch.float64)
            published.fill_diagonal_(1)
            assert released.error(got["distance"], torch.tensor(want["distance"], dtype=torch.float64)) <= tolerance
            assert released.error(got["confusion_predicted"], published) <= (0 if as_published else tolerance)
            true = torch.tensor(stored["confusion_true_rounded2"], dtype=torch.float64)
            # 0.005 is what rounding to two decimals leaves
            torch.testing.assert_close(got["confusion_observed"], true, rtol=0, atol=1e-9 if as_published else 0.005001)


def test_observed_confusion_comes_from_the_probabilities_of_the_released_code(case):
    own, _, stored, _, tolerance = case
    got = own.answers.label_logits.double().softmax(-1)
    assert released.error(got, torch.tensor(stored["label_probs_first_set"], dtype=torch.float64)) <= tolerance

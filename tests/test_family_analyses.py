"""All six analyses on every family and backend, against whole prompts run plainly; or refused with the reason."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import LAYERS, RUN, Case, refused
from torch import Tensor

from anchorlens import metrics, readings
from anchorlens.analyses.compression import compression, kept
from anchorlens.analyses.diagnosis import diagnosis
from anchorlens.analyses.extraction import by_class, extraction
from anchorlens.analyses.information_flow import averaging, information_flow, mean_flows, saliency
from anchorlens.analyses.isolation import controls, isolation, settings
from anchorlens.analyses.reweighting.training import prepared, train
from anchorlens.batching import Batch, Group, collate
from anchorlens.hooks import Isolate, Scale, SettingError


@pytest.fixture(scope="module", params=RUN, ids=" ".join)
def case(request, family_case) -> Case:
    return family_case(*request.param)


@pytest.fixture(scope="module")
def group(family_group) -> Group:
    return family_group


@pytest.fixture(scope="module")
def known(group) -> Group:
    """The first queries of known class."""
    return Group(tuple(each for each in group.prompts if each.gold is not None)[:4])


def flows(case: Case, batch: Batch) -> Tensor:
    """Mean saliency of plain patterns and plain gradients [batch layer flow]."""
    held = []

    def track(_: int, act: Tensor) -> Tensor:
        held.append(act.detach().requires_grad_() if not held else act)
        held[-1].retain_grad()
        return held[-1]

    logits = case.plain(batch.tokens, patterns=track).logits[torch.arange(len(batch.target)), batch.target]
    F.cross_entropy(logits.gather(1, batch.labels), batch.gold, reduction="sum").backward()
    weights = averaging(batch, torch.float64)
    return torch.stack([mean_flows(saliency(each.detach(), each.grad), weights) for each in held], dim=1)


def test_information_flow_is_that_of_plain_patterns_and_gradients(case, known):
    batch = collate(known.prompts)
    frame = information_flow(case.lens, batch)
    want = flows(case, batch)
    got = torch.tensor(frame["value"].to_numpy()).reshape(len(batch.gold), LAYERS, 3)
    for layer in range(LAYERS):
        case.near(got[:, layer], want[:, layer], times=10)


def test_isolation_answers_as_whole_prompts_do_under_the_edit(case, group):
    frame = isolation(case.lens, group, settings(LAYERS, [1, 2]))
    clean = case.whole()
    top = clean.topk(5).indices.numpy()
    for arm, rows in {"label": group.anchors, "random": controls.seeded(group)}.items():
        edit = Isolate(rows[None])
        for end, depth, layers in (("first", 1, [0]), ("first", 2, [0, 1]), ("last", 1, [2]), ("last", 2, [1, 2])):
            logits = case.whole(scores=lambda layer, act, e=edit, at=layers: e(act, layer) if layer in at else act)
            rows = frame.query(f"arm == {arm!r} and end == {end!r} and depth == {depth}")
            assert rows["predicted"].tolist() == logits[:, group.labels].argmax(-1).tolist()
            loyalty = metrics.jaccard(top, logits.topk(5).indices.numpy())
            np.testing.assert_array_equal(rows["word_loyalty"], loyalty)
            assert (end, depth) != ("last", 1) or loyalty.min() == 1, "it cannot reach the target"
    changed = frame.query("depth == 2 and end == 'first'")["word_loyalty"]
    assert changed.min() < 1, "the edit did nothing"


def test_extraction_reads_plain_patterns_of_whole_prompts(case, group):
    frame = extraction(readings.read(case.lens, group))
    want = []
    for prompt in group.prompts:
        run = case.plain(torch.tensor([prompt.ids]))
        each = torch.stack([pattern[0, :, -1, group.anchors].sum(0) for pattern in run.patterns])
        want.append(each[:, group.anchor_classes.argsort()])  # one demonstration of each class
    got = torch.tensor(frame["attention"].to_numpy()).reshape(len(group.prompts), LAYERS, 2)
    case.near(got, torch.stack(want))
    assert by_class(readings.read(case.lens, group)).shape == got.shape


def test_reweighting_trains_on_the_loss_of_plain_whole_prompts(case, known):
    trained = train(
        case.lens, prepared(case.lens, known, full_batch=True), epochs=3, full_batch=True, learning_rate=0.1
    )
    for epoch, loss in enumerate(trained.losses["loss"]):
        beta = trained.by_epoch[epoch - 1] if epoch else torch.zeros_like(trained.beta)
        logits = []
        for prompt in known.prompts:
            alone = collate([prompt])
            edit = Scale(alone.target, alone.anchors, beta)
            run = case.plain(alone.tokens, patterns=lambda layer, act, e=edit: e(act, layer))
            logits.append(run.logits[0, -1, known.labels])
        want = F.cross_entropy(torch.stack(logits), torch.tensor([prompt.gold for prompt in known.prompts]))
        assert loss == pytest.approx(want.item(), rel=10 * case.limit)
    assert trained.losses["loss"].is_monotonic_decreasing


def test_compression_answers_as_plain_runs_with_their_own_mask_and_positions(case, group):
    if reason := refused(case.family, case.lens.backend, "compression"):
        with pytest.raises(SettingError, match=reason):
            compression(case.lens, group, draws=1)
        return
    frame = compression(case.lens, group, draws=1)
    whole = case.whole()
    icl = frame.query("arm == 'icl'")
    assert icl["predicted"].tolist() == whole[:, group.labels].argmax(-1).tolist()
    arms = {arm: kept.by_role(group, arm) for arm in ("hidden_anchor", "format_only", "label_only")}
    arms["hidden_random"] = kept.with_random(group, kept.draw(group, 0), arms["hidden_anchor"])
    for arm, left in arms.items():
        for rule, first in {"restart": 0, "continue": group.length}.items():
            logits = case.keeping(left, first)
            rows = frame.query(f"arm == {arm!r} and positions == {rule!r}")
            assert rows["predicted"].tolist() == logits[:, group.labels].argmax(-1).tolist()
            want = metrics.jaccard(whole.topk(5).indices.numpy(), logits.topk(5).indices.numpy())
            np.testing.assert_array_equal(rows["word_loyalty"], want)


def test_diagnosis_measures_distances_between_the_keys_that_give_the_scores(case, group):
    if reason := refused(case.family, case.lens.backend, "diagnosis"):
        with pytest.raises(SettingError, match=reason):
            readings.read(case.lens, group, vectors=[1])
        return
    frame = diagnosis([readings.read(case.lens, group, vectors=range(LAYERS))], n_components=(2, 5))
    assert len(frame) == LAYERS * 2 * 4
    apart = frame[frame["label_a"] != frame["label_b"]]
    assert (apart["distance"] > 0).all()
    np.testing.assert_allclose(apart["confusion_predicted"], 1)  # of two classes, their distance is the largest
    gold = torch.tensor([-1 if each.gold is None else each.gold for each in group.prompts]).numpy()
    want = metrics.observed_confusion(case.whole()[:, group.labels].numpy(), gold)
    layer = frame.query("layer == 0 and n_components == 2")
    np.testing.assert_allclose(layer["confusion_observed"].to_numpy().reshape(2, 2), want)

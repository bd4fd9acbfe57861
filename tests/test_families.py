"""Every family on every backend, against the plain Hugging Face run; what is not exact must be refused with the reason.

Limits are relative to the largest value. Learned positions: float64, rounding. Elsewhere Hugging Face keeps rotary
frequencies in float32 (6e-8, times 100 positions), and the bridge computes norms in float32 as Hugging Face does.
"""

import families
import pytest
import torch
import torch.nn.functional as F
from compression_helpers import DRAFTS, encoded
from conftest import FIXTURES
from families import FAMILIES, LAYERS, N_CTX, PAIRS, RUN, VOCABULARY, WINDOW, Case, Family, built, refused
from torch import Tensor

from anchorlens import models, passes, readings
from anchorlens.analyses.compression import kept
from anchorlens.batching import Group, collate
from anchorlens.hooks import Inject, Isolate, Scale, SettingError, Silence, Site, capturing, differentiating, editing
from anchorlens.preflight import ModelError


@pytest.fixture(scope="module", params=RUN, ids=" ".join)
def case(request, family_case) -> Case:
    return family_case(*request.param)


@pytest.fixture(scope="module")
def group(family_group) -> Group:
    return family_group


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, 4 * WINDOW), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("family", "backend"), [pair for pair in PAIRS if pair not in RUN])
def test_a_family_that_a_backend_does_not_run_exactly_is_refused_with_the_reason(family_folder, family, backend):
    with pytest.raises(ModelError, match=refused(family, backend, "load")):
        models.load(family_folder(family), backend=backend, dtype="float64")


def test_the_table_of_families_in_the_readme_is_what_these_tests_hold():
    assert families.parts(families.PAGE.read_text())[1] == families.table(), "run: python tests/families.py"


def test_a_dtype_in_which_hugging_face_cannot_run_a_model_is_refused(tmp_path):
    experts = {**FAMILIES["llama"].given, "num_local_experts": 4}
    folder = built(Family("mixtral", "MixtralConfig", experts), tmp_path)
    with pytest.raises(ModelError, match=r"Hugging Face itself cannot run .*\(mixtral\) in float64.*another dtype"):
        models.load(str(folder), dtype="float64")


def test_the_released_gptj_is_refused_on_the_bridge():
    with pytest.raises(ModelError, match=refused("gptj", "bridge", "load")):
        models.load(str(FIXTURES / "gptj-tiny"), backend="bridge")


def test_prompts_are_read_by_the_tokenizer_of_the_folder(case, group):
    assert [each.ids for each in encoded(case.lens.tokenizer, DRAFTS[:8])] == [each.ids for each in group.prompts]


def test_prompts_may_be_as_long_as_the_model_was_made_for(case):
    assert case.lens.cfg.n_ctx == N_CTX


def test_logits_and_patterns_are_those_of_the_plain_run_at_every_position(case, tokens):
    want = case.plain(tokens)
    with capturing(case.lens, Site.PATTERN, range(LAYERS)) as patterns:
        case.near(case.lens(tokens), want.logits)
    for layer in range(LAYERS):
        case.near(patterns[layer], want.patterns[layer])


def loss_of(logits: Tensor, group: Group, batch) -> Tensor:
    return F.cross_entropy(logits[torch.arange(len(batch.target)), batch.target][:, group.labels], batch.gold)


@pytest.fixture
def batch(group):
    return collate([each for each in group.prompts if each.gold is not None][:3])


def gradients(case: Case, batch, *, checkpoint: bool) -> list[Tensor]:
    found = {}
    with differentiating(case.lens, Site.PATTERN, range(LAYERS), lambda layer, _, grad: found.update({layer: grad})):
        final = case.lens.at_target(batch.tokens, batch.target, checkpoint=checkpoint)
        F.cross_entropy(case.lens.label_logits(final, batch.labels), batch.gold).backward()
    return [found[layer] for layer in range(LAYERS)]


def test_gradients_of_patterns_are_finite_differences_of_the_plain_loss(case, group, batch):
    """Along random directions of each layer alone, all cells at once, and along a single cell in reach."""
    found = gradients(case, batch, checkpoint=False)
    chance = torch.Generator().manual_seed(3)
    for layer in range(LAYERS):
        every = torch.randn(found[layer].shape, generator=chance, dtype=torch.float64)
        one = torch.zeros_like(every)
        one[0, 1, batch.target[0], batch.target[0] - 3] = 1
        for direction in (every, one):

            def loss(by: float, at: int = layer, to: Tensor = direction) -> Tensor:
                run = case.plain(batch.tokens, patterns=lambda now, act: act + by * to if now == at else act)
                return loss_of(run.logits, group, batch)

            step = 1e-5
            want = (loss(step) - loss(-step)) / (2 * step)
            scale = (found[layer] * direction).abs().sum().clamp(min=1e-3)
            # a central difference: rounding of the loss over the step, 1e-11, and the step squared
            assert ((found[layer] * direction).sum() - want).abs() / scale <= 1e-8 + case.limit


def test_gradients_of_every_cell_are_those_of_the_plain_run(case, group, batch):
    held = []

    def track(_: int, act: Tensor) -> Tensor:
        held.append(act.detach().requires_grad_() if not held else act)
        held[-1].retain_grad()
        return held[-1]

    loss_of(case.plain(batch.tokens, patterns=track).logits, group, batch).backward()
    found = gradients(case, batch, checkpoint=False)
    for layer in range(LAYERS):
        case.near(found[layer], held[layer].grad, times=10)


def test_checkpointed_gradients_are_the_same(case, batch):
    for one, other in zip(
        gradients(case, batch, checkpoint=False), gradients(case, batch, checkpoint=True), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def edits(batch) -> dict:
    beta = torch.linspace(-1, 1, LAYERS * 4 * 2, dtype=torch.float64).reshape(LAYERS, 4, 2)
    return {
        "isolate": Isolate(batch.anchors),
        "silence": Silence(batch.anchors),
        "scale": Scale(batch.target, batch.anchors, beta),
    }


@pytest.mark.parametrize("which", ["isolate", "silence", "scale"])
@pytest.mark.parametrize("layers", [[0], [1, 2]], ids=str)
def test_edits_of_attention_do_what_they_do_in_the_plain_run(case, batch, which, layers):
    edit = edits(batch)[which]

    def change(layer: int, act: Tensor) -> Tensor:
        return edit(act, layer) if layer in layers else act

    at = {"scores": change} if edit.site is Site.SCORES else {"patterns": change}
    rows = torch.arange(len(batch.target))
    want = case.plain(batch.tokens, **at).logits[rows, batch.target]
    clean = case.plain(batch.tokens).logits[rows, batch.target]
    assert (want - clean).abs().max() > 1e-3 * clean.abs().max(), "the edit did nothing"
    with editing(case.lens, edit, layers):
        got = case.lens.all_logits(case.lens.at_target(batch.tokens, batch.target))
    case.near(got, want)


def test_injected_hidden_states_do_what_they_do_in_the_plain_run(case, batch):
    chance = torch.Generator().manual_seed(5)
    edit = Inject(torch.randn(LAYERS, 4, case.lens.cfg.d_model, generator=chance, dtype=torch.float64))
    hooks = [
        each.register_forward_pre_hook(
            lambda _, given, named, layer=layer: (
                ((edit(given[0], layer), *given[1:]), named)
                if given
                else (given, {**named, "hidden_states": edit(named["hidden_states"], layer)})
            ),
            with_kwargs=True,
        )
        for layer, each in enumerate(case.plain.layers)
    ]
    try:
        want = case.plain(batch.tokens).logits
    finally:
        for hook in hooks:
            hook.remove()
    with editing(case.lens, edit, range(LAYERS)):
        case.near(case.lens(batch.tokens), want)


def test_queries_after_remembered_demonstrations_are_whole_prompts(case, group):
    memory = passes.demonstrate(case.lens, group).memory
    case.near(case.after(memory), case.whole())
    if not case.lens.pads_exactly(case.group.longest):
        with pytest.raises(AssertionError, match="of the largest"):
            case.near(case.after(memory, padding=True), case.whole())


def test_one_token_steps_and_gradients_of_factors_are_those_of_the_plain_whole_prompt(case, group):
    beta = torch.linspace(-1, 1, LAYERS * 4 * 2, dtype=torch.float64).reshape(LAYERS, 4, 2).requires_grad_()
    memory = passes.demonstrate(case.lens, group).memory
    for asked in group.queries(lambda _: 3, padding=case.lens.pads_exactly(case.group.longest))[:3]:
        ready = passes.prepare(case.lens, group, memory, asked)
        n = len(asked.gold)
        where = group.anchors.expand(n, -1)
        with editing(case.lens, Scale(torch.zeros(n, dtype=torch.int64), where, beta), range(LAYERS)):
            got = passes.step(case.lens, ready)
        want = []
        for example in asked.example.tolist():
            alone = collate([group.prompts[example]])
            edit = Scale(alone.target, alone.anchors, beta)
            run = case.plain(alone.tokens, patterns=lambda layer, act, edit=edit: edit(act, layer))
            want.append(run.logits[0, -1, group.labels])
        want = torch.stack(want)
        case.near(got.detach(), want.detach())
        case.near(
            torch.autograd.grad(got.sin().sum(), beta)[0], torch.autograd.grad(want.sin().sum(), beta)[0], times=10
        )


@pytest.mark.parametrize("layers", [[0], [1], [0, 1], [1, 2]], ids=str)
def test_resuming_at_a_layer_is_the_plain_whole_prompt_under_the_edit(case, group, layers):
    first, edit = min(layers), Isolate(group.anchors[None])
    clean = passes.demonstrate(case.lens, group, resume=[first])
    with editing(case.lens, edit, layers):
        memory = passes.demonstrate_from(case.lens, clean, first)

    def change(layer: int, act: Tensor) -> Tensor:
        return edit(act, layer) if layer in layers else act

    want = case.whole(scores=change)
    for asked in group.queries(lambda _: 4, padding=case.lens.pads_exactly(case.group.longest)):
        with capturing(case.lens, Site.RESID_PRE, [first + 1]) as resid:
            passes.respond(case.lens, group, clean.memory, asked)
        said = case.lens.read(memory, asked.tokens, asked.mask, start=first + 1, resid=resid[first + 1])
        case.near(case.lens.all_logits(said), want[asked.example])


@pytest.mark.parametrize("arm", kept.ROLES)
@pytest.mark.parametrize("rule", ["restart", "continue"])
def test_kept_tokens_are_the_plain_run_with_its_own_mask_and_positions(case, group, arm, rule):
    left = kept.by_role(group, arm)
    first = 0 if rule == "restart" else group.length
    memory = passes.demonstrate(case.lens, group).memory
    if reason := refused(case.family, case.lens.backend, "compression"):
        with pytest.raises(SettingError, match=reason):
            case.lens.keep(memory, left, first, longest=case.group.longest)
        return
    case.near(case.after(case.lens.keep(memory, left, first, longest=case.group.longest)), case.keeping(left, first))


def test_scores_are_products_of_the_queries_and_keys_that_are_shown(case, group):
    """Per head, q·k / sqrt(d_head), or what the family divides by; with a cap on scores, before the cap."""
    if reason := refused(case.family, case.lens.backend, "diagnosis"):
        with pytest.raises(SettingError, match=reason):
            readings.read(case.lens, group, vectors=[1])
        return
    found = readings.read(case.lens, group, vectors=range(LAYERS))
    config = case.plain.model.config
    cap = getattr(config, "attn_logit_softcapping", None)
    scale = getattr(config, "query_pre_attn_scalar", case.lens.cfg.d_head) ** -0.5
    attention, top = [], []
    for n, prompt in enumerate(group.prompts):
        run = case.plain(torch.tensor([prompt.ids]))
        attention.append(torch.stack([each[0, :, -1, group.anchors].sum(0) for each in run.patterns]))
        top.append(run.logits[0, -1, group.labels])
        heads = (case.lens.cfg.n_heads, case.lens.cfg.d_head)
        for layer in range(LAYERS):
            met = run.scores[layer][0, :, -1, group.anchors]
            seen = met > -1e30  # a window hides the others
            queries, keys = found.queries[n, layer].reshape(heads), found.keys[layer].reshape(-1, *heads)
            product = torch.einsum("hd,ahd->ha", queries, keys) * scale
            product = cap * torch.tanh(product / cap) if cap else product
            case.near(product[seen], met[seen])
    case.near(found.attention, torch.stack(attention))
    case.near(found.answers.label_logits, torch.stack(top))

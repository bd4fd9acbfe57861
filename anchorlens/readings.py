"""What the target reads, captured in one pass for every analysis that needs it (sections 2.3 and 3.3)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anchorlens import passes
from anchorlens.batching import Batch, Group, Queries, collate
from anchorlens.hooks import Site, capturing, watching
from anchorlens.models import Lens, device_of
from anchorlens.passes import Answers


@dataclass(frozen=True, eq=False)
class Readings:
    """A group's answers and what its targets attend to, on the CPU, in the order of ``group.prompts``.

    Attributes:
        attention: A_l(q, p_i) summed over heads and over all tokens that stand for a label word [query layer demo].
        layers: the layers of ``queries`` and ``keys``.
        queries: query vectors at the target, heads concatenated [query layer width]; after rotation where positions are
            rotary, not divided by the square root of d_head.
        keys: key vectors at the anchors, likewise [layer demo width]; heads that share a key repeat it. Of a label word
            of several tokens the mean of their keys: what a query's scores of them are on average.
    """

    group: Group
    answers: Answers
    attention: Float[Tensor, "query layer demo"]
    layers: tuple[int, ...]
    queries: Float[Tensor, "query kept width"]
    keys: Float[Tensor, "kept demo width"]


@torch.no_grad()
def read(model: Lens, group: Group, *, batch_tokens: int = 0, vectors: Iterable[int] = ()) -> Readings:
    """One pass over a group: its demonstrations once, then its queries; a single query with them at once.

    Args:
        batch_tokens: tokens of queries per batch; 0: from free memory.
        vectors: layers at which query and key vectors are kept.

    Raises:
        ValueError: for a layer that the model does not have.
        SettingError: for vectors of a model whose backend does not show those that scores are products of.
        NotFiniteError: if a label logit is not finite; names the prompts.
        NoRoomError: if a single query does not fit into memory.
    """
    layers, every = tuple(vectors), range(model.cfg.n_layers)
    query_site, key_site = model.attention_sites() if layers else (Site.QUERIES, Site.KEYS)
    home = device_of(model)  # layers may lie on several devices
    each = group.scoring.rows  # of a query; the first of them is itself
    tokens, demos, n_demos = group.rows.to(home), group.row_demos.to(home), len(group.anchors)
    alone = len(tokens) == n_demos
    attention: dict[int, Tensor] = {}
    queries: dict[int, Tensor] = {}

    def attended(layer: int, pattern: Float[Tensor, "batch head query key"]) -> None:
        found = pattern[::each, :, -1].index_select(-1, tokens.to(pattern.device)).sum(1).to(home)
        attention[layer] = found if alone else found.new_zeros(len(found), n_demos).index_add(1, demos, found)

    def asked_for(layer: int, every_row: Float[Tensor, "batch query head d_head"]) -> None:
        queries[layer] = every_row[::each, -1].flatten(1).clone().to(home)  # a view would keep every row

    def kept_of(said: Answers) -> dict[int, list[Tensor]]:
        """What is kept of each query, by example."""
        seen = torch.stack([attention[layer] for layer in every], dim=1)
        kept_queries = [queries[layer] for layer in layers]
        found = torch.stack(kept_queries, dim=1) if layers else seen.new_zeros(len(seen), 0, 0)
        columns = [part.cpu() for part in (said.gold, said.label_logits, said.top, seen, found)]
        return {example: [column[n] for column in columns] for n, example in enumerate(said.example.tolist())}

    def ask(asked: Queries) -> dict[int, list[Tensor]]:
        with watching(model, Site.PATTERN, every, attended), watching(model, query_site, layers, asked_for):
            return kept_of(passes.respond(model, group, memory, asked))

    def ask_whole(asked: Batch) -> dict[int, list[Tensor]]:
        with watching(model, Site.PATTERN, every, attended), watching(model, query_site, layers, asked_for):
            return kept_of(passes.answers(model, asked))

    rows: dict[int, list[Tensor]] = {}
    with capturing(model, key_site, layers) as kept:
        if single := len(group.prompts) == each == 1:  # nobody shares its demonstrations: one pass instead of two
            rows |= next(passes.halving(ask_whole, [collate(group.prompts).to(home)]))
        else:
            memory = passes.demonstrate(model, group).memory
    keys = [_concatenated(kept[layer][0].to(home)[tokens], model.cfg.n_heads) for layer in layers]
    if not alone:
        keys = [torch.stack([key[demos == demo].mean(0) for demo in range(n_demos)]) for key in keys]

    if not single:
        for found in passes.halving(ask, passes.queries(model, group, batch_tokens)):
            rows |= found
    order = [prompt.example for prompt in group.prompts]
    gold, logits, top, seen, found = (torch.stack([rows[example][i] for example in order]) for i in range(5))
    none = torch.zeros(0, n_demos, 0, dtype=seen.dtype)
    return Readings(
        group,
        Answers(torch.tensor(order), gold, logits, top),
        seen,
        layers,
        found,
        torch.stack(keys).cpu() if keys else none,
    )


def _concatenated(vectors: Float[Tensor, "row kv_head d_head"], heads: int) -> Float[Tensor, "row width"]:
    """Heads side by side, a key that several heads share once for each of them."""
    return vectors.repeat_interleave(heads // vectors.shape[1], dim=1).flatten(1)

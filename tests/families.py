"""Small random models of each family, built offline from their Hugging Face configs, and the plain run of each.

Weights are drawn large (0.3), norms away from 1 and biases away from 0, so that a mistake anywhere shows.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from conftest import BACKENDS, FIXTURES
from torch import Tensor

from anchorlens.batching import Group
from anchorlens.models import Lens

VOCABULARY = 1487  # of the fixtures' tokenizer
N_CTX, LAYERS, WINDOW = 128, 3, 20  # prompts are shorter than the first and longer than the last
_TOKENIZER = ("tokenizer.json", "special_tokens_map.json", "vocab.json", "merges.txt")
_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": N_CTX,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
_GEMMA2 = {
    **_GROUPED,
    "head_dim": 12,
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 8.0,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Family:
    """One architecture: ``config`` names Hugging Face's config class, ``given`` what it is made of."""

    name: str
    config: str
    given: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""


FAMILIES = {
    each.name: each
    for each in (
        Family("gpt2", "GPT2Config", {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": N_CTX}, "GPT-2"),
        Family(
            "gptj",
            "GPTJConfig",
            {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": N_CTX, "rotary_dim": 4},
            "GPT-J",
        ),
        Family("gpt_neox", "GPTNeoXConfig", {**_SHAPE, "rotary_pct": 0.5}, "GPT-NeoX, Pythia"),
        Family(
            "opt",
            "OPTConfig",
            {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1},
            "OPT",
        ),
        Family("llama", "LlamaConfig", _GROUPED, "Llama"),
        Family(
            "mistral", "MistralConfig", {**_GROUPED, "sliding_window": WINDOW}, "Mistral, prompts beyond its window"
        ),
        Family("mistral_near", "MistralConfig", {**_GROUPED, "sliding_window": N_CTX}, "Mistral, prompts within it"),
        Family("qwen2", "Qwen2Config", _GROUPED, "Qwen2"),
        Family("qwen3", "Qwen3Config", {**_GROUPED, "head_dim": 12}, "Qwen3"),
        Family("gemma2", "Gemma2Config", {**_GEMMA2, "sliding_window": WINDOW}, "Gemma-2, prompts beyond its window"),
        Family("gemma2_near", "Gemma2Config", {**_GEMMA2, "sliding_window": N_CTX}, "Gemma-2, prompts within it"),
        Family("phi", "PhiConfig", {**_SHAPE, "partial_rotary_factor": 0.5}, "Phi"),
    )
}


@dataclass(frozen=True)
class Refusal:
    """What a backend refuses of a family ("load": all); how the error reads, and that for docs/models.md."""

    what: str
    reads: str
    because: str


_IGNORED = Refusal("load", "editing attention scores has no effect", "edits of its attention have no effect")
_LOCAL = Refusal(
    "compression",
    r"local attention \(the last 20 tokens\), and prompts have up to \d+: keeping some tokens alone is exact only",
    "local attention counts the tokens that are left out",
)
_UNKNOWN = Refusal("load", "Gemma2ForCausalLM is not currently supported", "not known from its config")
REFUSED: Mapping[tuple[str, str], Refusal] = {
    ("gptj", "bridge"): _IGNORED,
    ("opt", "bridge"): _IGNORED,
    ("gpt_neox", "bridge"): Refusal(
        "diagnosis",
        "shows no queries and keys after their rotation for gpt_neox",
        "no queries and keys are shown after their rotation",
    ),
    ("mistral", "hooked"): _LOCAL,
    ("mistral", "bridge"): _LOCAL,
    ("gemma2", "hooked"): _UNKNOWN,
    ("gemma2_near", "hooked"): _UNKNOWN,
    ("gemma2", "bridge"): _LOCAL,
    ("phi", "hooked"): Refusal(
        "load",
        "'PhiConfig' object has no attribute 'partial_rotary_factor'",
        "not known from a config of transformers 5",
    ),
}


def refused(family: str, backend: str, what: str) -> str:
    """How the reason reads for which something is refused; empty if it is not."""
    refusal = REFUSED.get((family, backend))
    return refusal.reads if refusal and refusal.what == what else ""


PAIRS = [(family, backend) for family in FAMILIES for backend in BACKENDS]
RUN = [pair for pair in PAIRS if not refused(*pair, "load")]


def built(family: Family, folder: Path) -> Path:
    """Save a random model of a family with the fixtures' tokenizer, as a Hugging Face folder."""
    import transformers

    tokens = {"vocab_size": VOCABULARY, "bos_token_id": VOCABULARY - 1, "eos_token_id": VOCABULARY - 1}
    config = getattr(transformers, family.config)(**{**tokens, **family.given})
    model = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)
    chance = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        drawn = torch.randn(weight.shape, generator=chance)
        if weight.ndim > 1:
            weight.copy_(drawn * 0.3)
        elif name.endswith("bias"):
            weight.copy_(drawn * 0.2)
        else:  # norms; what a Gemma norm adds 1 to is here around 0 as in the real one
            weight.copy_(drawn * 0.2 + weight.mean().round())
    model.save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copy(FIXTURES / "gpt2-tiny" / name, folder)
    (folder / "tokenizer_config.json").write_text(
        (FIXTURES / "gpt2-tiny" / "tokenizer_config.json")
        .read_text()
        .replace('"GPT2Tokenizer"', '"PreTrainedTokenizerFast"')
    )
    return folder


Change = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Ran:
    """A plain run: logits [batch pos vocabulary]; by layer, masked scores and patterns [batch head query key]."""

    logits: Tensor
    scores: list[Tensor]
    patterns: list[Tensor]


class Plain:
    """The Hugging Face model without any of ours or of transformer-lens, in float64 throughout.

    Its eager attention calls softmax once a layer: there its scores and patterns are seen, and changed.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", local_files_only=True
        )
        self.model.eval().requires_grad_(False)

    @property
    def layers(self) -> Any:
        body = self.model.base_model
        return body.h if hasattr(body, "h") else getattr(body, "decoder", body).layers

    def __call__(
        self, tokens: Tensor, *, scores: Change = lambda _, x: x, patterns: Change = lambda _, x: x, **given: Any
    ) -> Ran:
        """Run whole prompts; ``scores`` and ``patterns`` map those of a layer to what takes their place."""
        met: list[Tensor] = []
        made: list[Tensor] = []

        def softmax(values: Tensor, dim: int = -1, **_: Any) -> Tensor:
            layer = len(made)
            met.append(scores(layer, values))
            made.append(patterns(layer, torch.softmax(met[-1], dim)))
            return made[-1]

        with _wide(), mock.patch.object(torch.nn.functional, "softmax", softmax):
            logits = self.model(tokens, use_cache=False, **given).logits
        assert len(made) == LAYERS
        return Ran(logits, met, made)


@contextmanager
def _wide() -> Iterator[None]:
    """Norms and rotations that Hugging Face computes in float32 whatever the model's dtype, in float64."""
    with (
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(torch, "float", torch.float64),
        mock.patch.object(Tensor, "float", Tensor.double),
    ):
        yield


@dataclass(frozen=True, eq=False)
class Case:
    """A model through a backend, the same plainly, and prompts for both."""

    family: str
    lens: Lens
    plain: Plain
    group: Group
    limit: float

    def near(self, got: Tensor, want: Tensor, times: float = 1.0) -> None:
        assert got.shape == want.shape
        error = ((got - want).abs().max() / want.abs().max()).item()
        assert error <= times * self.limit, f"{error:.1e} of the largest"

    def whole(self, **changes) -> Tensor:
        """Logits at each target of whole prompts, run plainly and alone [query vocabulary]."""
        every = [torch.tensor([each.ids]) for each in self.group.prompts]
        return torch.stack([self.plain(each, **changes).logits[0, -1] for each in every])

    def after(self, memory, *, padding: bool | None = None) -> Tensor:
        """The same after remembered demonstrations, in ragged batches as analyses make them."""
        found = {}
        padding = self.lens.pads_exactly(self.group.longest) if padding is None else padding
        for asked in self.group.queries(lambda _: 4, padding=padding):
            logits = self.lens.all_logits(self.lens.read(memory, asked.tokens, asked.mask))
            found |= dict(zip(asked.example.tolist(), logits, strict=True))
        return torch.stack([found[each.example] for each in self.group.prompts])

    def keeping(self, left: Tensor, first: int) -> Tensor:
        """Logits of whole prompts whose queries see the demonstrations' tokens ``left`` alone, from position ``first``.

        A plain run with a mask and positions of its own.
        """
        start = self.group.length
        hidden = torch.ones(start, dtype=torch.bool).index_fill(0, left, False)

        def hide(_: int, act: Tensor) -> Tensor:
            cells = torch.zeros(act.shape[-2:], dtype=torch.bool)
            cells[start:, :start] = hidden
            return act.masked_fill(cells, -torch.inf)

        found = []
        for prompt in self.group.prompts:
            ids = torch.tensor([prompt.ids])
            positions = torch.cat([torch.arange(start), first + torch.arange(len(prompt.ids) - start)])[None]
            run = self.plain(ids, scores=hide, position_ids=positions, attention_mask=torch.ones_like(ids))
            found.append(run.logits[0, -1])
        return torch.stack(found)


PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- families: python tests/families.py -->\n", "<!-- end of families -->\n"


def table() -> str:
    """The table of families in docs/models.md, of which the tests hold every cell to be true."""
    rows = ["| family | HookedTransformer (3.x) | TransformerBridge (3.x, 4.x) |", "|---|---|---|"]
    for family in FAMILIES.values():
        cells = []
        for backend in ("hooked", "bridge"):
            refusal = REFUSED.get((family.name, backend))
            if refusal is None:
                cells.append("all six")
            else:
                cells.append(("no: " if refusal.what == "load" else f"all but {refusal.what}: ") + refusal.because)
        rows.append(f"| {family.title} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def parts(page: str) -> tuple[str, str, str]:
    """What comes before the table, the table, and what comes after it."""
    before, rest = page.split(BEGIN)
    inside, after = rest.split(END)
    return before, inside, after


if __name__ == "__main__":
    before, _, after = parts(PAGE.read_text())
    PAGE.write_text(before + BEGIN + table() + END + after)

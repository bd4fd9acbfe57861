"""How large a model is, from its config.json or once it is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class ShapeError(ValueError):
    """A config.json that does not say how large its model is."""


@dataclass(frozen=True)
class Shape:
    """How large a model is.

    Attributes:
        kv_heads: heads of keys and values; fewer than ``n_heads`` where several share one.
        d_mlp: inner width of the MLP, 0 where there is none.
        gated: whether the MLP has a gate, a third matrix.
        parallel: whether attention and MLP read the same residual stream.
        learned: whether positions are learned.
        rotary: dimensions of a head that are rotated; 0: positions are not rotary.
        experts, experts_used: MLPs in a layer, and how many of them a token takes.
        scale_only: whether norms have a scale and no shift (RMS).
        itemsize: bytes of a number.
    """

    n_layers: int
    d_model: int
    n_heads: int
    kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    gated: bool = False
    parallel: bool = False
    learned: bool = True
    rotary: int = 0
    experts: int = 1
    experts_used: int = 1
    scale_only: bool = False
    itemsize: int = 4

    @property
    def wide(self) -> int:
        """Bytes of a number where half precision would not do."""
        return max(4, self.itemsize)

    @property
    def matrices(self) -> int:
        """How many an MLP has."""
        return 3 if self.gated else 2


def of_model(cfg: Any) -> Shape:
    """The shape of a loaded model, from its ``cfg``."""
    rotary = cfg.positional_embedding_type == "rotary"
    return Shape(
        n_layers=cfg.n_layers,
        d_model=cfg.d_model,
        n_heads=cfg.n_heads,
        kv_heads=cfg.n_key_value_heads or cfg.n_heads,
        d_head=cfg.d_head,
        d_mlp=0 if cfg.attn_only else cfg.d_mlp,
        d_vocab=cfg.d_vocab,
        n_ctx=cfg.n_ctx,
        gated=bool(cfg.gated_mlp),
        parallel=bool(cfg.parallel_attn_mlp),
        learned=cfg.positional_embedding_type == "standard",
        rotary=(cfg.rotary_dim or cfg.d_head) if rotary else 0,
        experts=getattr(cfg, "num_experts", None) or 1,
        experts_used=getattr(cfg, "experts_per_token", None) or 1,
        scale_only=str(cfg.normalization_type).startswith("RMS"),
        itemsize=cfg.dtype.itemsize,
    )


_NAMES = {
    "n_layers": ("n_layer", "num_hidden_layers", "num_layers"),
    "d_model": ("n_embd", "hidden_size"),
    "n_heads": ("n_head", "num_attention_heads", "num_heads"),
    "d_vocab": ("vocab_size",),
    "n_ctx": ("n_positions", "n_ctx", "max_position_embeddings"),
}  # what config.json calls it: GPT-2 and GPT-J, then GPT-NeoX, Llama and their like
_LEARNED = ("gpt2", "gpt_neo", "opt")
_PLAIN = ("gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "phi", "pythia")  # an MLP of two matrices
_PARALLEL = ("gptj", "phi")


def of_config(config: Mapping[str, Any], dtype: str = "float32") -> Shape:
    """The shape that a Hugging Face ``config.json`` describes.

    Raises:
        ShapeError: names what the config does not say.
    """
    found = {ours: next((config[name] for name in names if config.get(name)), 0) for ours, names in _NAMES.items()}
    if missing := [f"{ours} ({' or '.join(_NAMES[ours])})" for ours, value in found.items() if not value]:
        raise ShapeError(
            f"config.json of model type {config.get('model_type')!r} does not say {', '.join(missing)}; it has "
            f"{', '.join(sorted(config))}. Without that its memory cannot be estimated; run it without --dry-run."
        )
    kind, d_model, heads = config.get("model_type", ""), found["d_model"], found["n_heads"]
    plain = kind in _PLAIN
    inner = config.get("intermediate_size") or config.get("n_inner") or config.get("ffn_dim")
    if not inner and not plain:
        raise ShapeError(
            f"config.json of model type {kind!r} does not say how wide its MLP is (intermediate_size or n_inner), so "
            "its memory cannot be estimated; run it without --dry-run."
        )
    d_head = config.get("head_dim") or d_model // heads
    return Shape(
        **found,
        kv_heads=config.get("num_key_value_heads") or heads,
        d_head=d_head,
        d_mlp=inner or 4 * d_model,
        gated=not plain,
        parallel=kind in _PARALLEL or (kind == "gpt_neox" and config.get("use_parallel_residual", True)),
        learned=kind in _LEARNED,
        rotary=0 if kind in _LEARNED else _rotary(config, d_head),
        experts=config.get("num_local_experts") or config.get("num_experts") or 1,
        experts_used=config.get("num_experts_per_tok") or 1,
        scale_only=not plain,
        itemsize=BYTES[dtype],
    )


def _rotary(config: Mapping[str, Any], d_head: int) -> int:
    if config.get("rotary_dim"):
        return config["rotary_dim"]
    stretched = config.get("rope_parameters") or {}
    share = config.get("partial_rotary_factor") or stretched.get("partial_rotary_factor") or config.get("rotary_pct")
    return int(d_head * (share or (0.25 if config.get("model_type") == "gpt_neox" else 1)))

"""Load a model by name, behind one small protocol. The only module that imports transformer_lens.

Weights are never processed: transformer-lens' defaults fold value biases, which leaves logits as they are but changes
every gradient and edit of an attention pattern (by up to 8 % of the saliency on the paper's models).
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from anchorlens import preflight
from anchorlens.hooks import Isolate, Scale, editing
from anchorlens.preflight import Checkpoint, ModelError

# Against the plain Hugging Face run, relative to its largest logit. Observed: float32 1e-6; float64 1e-15 for GPT-2 and
# 1e-7 for GPT-J and GPT-NeoX, where Hugging Face computes attention or rotary angles in float32 all the same.
_AGREEMENT = {"float64": 1e-6, "float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}


@runtime_checkable
class Lens(Protocol):
    """What the analyses ask of a model, whatever backend runs it."""

    cfg: Any  # n_layers, n_heads, d_model, d_head, n_ctx, d_vocab, device, dtype
    tokenizer: Any
    checkpoint: Checkpoint

    def hooks(self, fwd_hooks: Sequence = (), bwd_hooks: Sequence = ()) -> AbstractContextManager:
        """Install hooks, by name, for the length of a ``with`` block."""
        ...

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocabulary"]:
        """Logits at every position: the plain run, which every faster way is tested against."""
        ...

    def at_target(
        self, tokens: Int[Tensor, "batch pos"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch d_model"]:
        """What the output matrix reads at ``target``: the last residual stream after the final norm."""
        ...

    def label_logits(
        self, final: Float[Tensor, "batch d_model"], labels: Int[Tensor, "batch label"]
    ) -> Float[Tensor, "batch label"]:
        """Logits of the given tokens alone, from what ``at_target`` gives."""
        ...


class Hooked:
    """A ``HookedTransformer`` with frozen, unprocessed weights, as a ``Lens``."""

    def __init__(self, model: Any, tokenizer: Any, checkpoint: Checkpoint) -> None:
        self.model, self.tokenizer, self.checkpoint = model, tokenizer, checkpoint
        self.cfg = model.cfg

    def hooks(self, fwd_hooks: Sequence = (), bwd_hooks: Sequence = ()) -> AbstractContextManager:
        return self.model.hooks(fwd_hooks=list(fwd_hooks), bwd_hooks=list(bwd_hooks))

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocabulary"]:
        return self.model(tokens)

    def at_target(
        self, tokens: Int[Tensor, "batch pos"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch d_model"]:
        resid = self.model(tokens, stop_at_layer=self.cfg.n_layers)
        row = resid[torch.arange(len(target), device=resid.device), target]
        return self.model.ln_final(row[:, None])[:, 0]

    def label_logits(
        self, final: Float[Tensor, "batch d_model"], labels: Int[Tensor, "batch label"]
    ) -> Float[Tensor, "batch label"]:
        unembed = self.model.unembed
        columns = unembed.W_U[:, labels]  # [d_model batch label]
        logits = torch.einsum("bd,dbl->bl", final, columns) + unembed.b_U[labels]
        cap = getattr(self.cfg, "output_logits_soft_cap", -1.0)
        return cap * torch.tanh(logits / cap) if cap > 0 else logits


def load(
    name: str,
    *,
    backend: str = "auto",
    revision: str = "",
    device: str = "auto",
    dtype: str = "auto",
    random_seed: int | None = None,
) -> Hooked:
    """Load a model by name, frozen, without weight processing.

    Args:
        name: toy, toy-random, toy-unanchored, a Hugging Face folder, or a hub id.
        backend: "hooked" (HookedTransformer); "auto" means the same.
        revision: branch, tag or commit of a hub model.
        device: cpu, cuda, cuda:N, mps; "auto": cuda where it can be used, otherwise cpu.
        dtype: float32 ("auto"), float64, bfloat16 or float16.
        random_seed: keep the architecture and draw all weights anew from this seed, as the untrained control.

    Raises:
        ModelError: for a model that cannot be used: wrong folder, unsupported architecture, logits that differ from
            the plain Hugging Face run, or hooks whose edits have no effect.
        MissingModelError: for weights that are not here and cannot be fetched.
    """
    preflight.check_backend(backend)
    device, dtype = preflight.resolve_device(device), preflight.resolve_dtype(dtype)
    checkpoint = preflight.locate(name, revision)
    if random_seed is not None:
        checkpoint = Checkpoint(checkpoint.name, checkpoint.folder, checkpoint.revision, random_seed)
    plain, tokenizer = _hugging_face(checkpoint, getattr(torch, dtype))
    model = Hooked(_hooked_transformer(checkpoint, plain, device, getattr(torch, dtype)), tokenizer, checkpoint)
    with torch.no_grad():
        _check_logits(model, plain, dtype)
        _check_edits(model)
    return model


def _hugging_face(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, Any]:
    with warnings.catch_warnings():  # tqdm asks for ipywidgets, whose bars are useless in a stored notebook
        warnings.filterwarnings("ignore", message="IProgress not found")
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = str(checkpoint.folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if checkpoint.random_seed is None:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True
            )
            plain, found = loaded
            if missing := sorted(found["missing_keys"]):  # they would be drawn at random
                raise ModelError(
                    f"model {checkpoint.name!r}: {folder} lacks {len(missing)} weights ({', '.join(missing[:3])}). "
                    "Save the whole model there."
                )
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(checkpoint.random_seed)
                plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).to(dtype)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"model {checkpoint.name!r}: Hugging Face cannot load {folder}: {error}") from error
    return plain.eval().requires_grad_(False), tokenizer


def _hooked_transformer(checkpoint: Checkpoint, plain: Any, device: str, dtype: torch.dtype) -> Any:
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading

    logging.getLogger("transformer_lens").setLevel(logging.ERROR)
    config = plain.config.to_dict()
    if config.get("n_ctx") is None and "n_positions" in config:
        config["n_ctx"] = config["n_positions"]  # GPT-2 configs saved by transformers 5 leave it out
    with tempfile.TemporaryDirectory() as folder:  # transformer-lens reads the config from disk
        (Path(folder) / "config.json").write_text(json.dumps(config, default=str))
        try:
            cfg = loading.get_pretrained_model_config(folder, hf_cfg=config, fold_ln=False, device=device, dtype=dtype)
        except (NotImplementedError, KeyError, AttributeError, ValueError) as error:
            raise ModelError(
                f"model {checkpoint.name!r}: transformer-lens does not know its architecture "
                f"{config.get('architectures')}: {type(error).__name__}: {error}"
            ) from error
        state = loading.get_pretrained_state_dict(folder, cfg, plain, dtype=dtype)
    cfg.tokenizer_name = None  # prompts come as tokens; a tokenizer of its own would add start tokens and padding rules
    rotary = config.get("rope_parameters") or {}
    if cfg.positional_embedding_type == "rotary" and "rope_theta" in rotary:
        cfg.rotary_base = rotary["rope_theta"]  # transformer-lens 3.9 assumes 10000 for GPT-NeoX
    with warnings.catch_warnings():  # its successor differs from it in ways that matter here, so the notice is no news
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        model = HookedTransformer(cfg)
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    return model.eval().requires_grad_(False)


def _probe(model: Hooked) -> Int[Tensor, "1 pos"]:
    """A few tokens spread over the vocabulary, to try a model on."""
    n = min(48, model.cfg.n_ctx)
    return (torch.arange(n)[None] * 7919 + 11) % model.cfg.d_vocab


def _check_logits(model: Hooked, plain: Any, dtype: str) -> None:
    tokens = _probe(model)
    want = plain(tokens).logits.double()
    got = model(tokens.to(model.cfg.device)).cpu().double()
    error = ((got - want).abs().max() / want.abs().max()).item()
    if not error <= _AGREEMENT[dtype]:  # a NaN must fail too
        raise ModelError(
            f"model {model.checkpoint.name!r}: logits through transformer-lens differ from the plain Hugging Face "
            f"run by {error:.1e} of the largest (at most {_AGREEMENT[dtype]:.0e} in {dtype}). "
            f"Its architecture ({plain.config.model_type}) is not reproduced exactly, so no analysis would be right."
        )


def _check_edits(model: Hooked) -> None:
    """Some backends call hooks and ignore what they return; such a model must not be analysed."""
    tokens = _probe(model).to(model.cfg.device)
    last = torch.tensor([[tokens.shape[1] - 1]], device=tokens.device)
    clean = model(tokens)[0, -1]
    doubled = torch.full((1, model.cfg.n_heads, 1), 2.0, dtype=model.cfg.dtype, device=tokens.device).log()
    edits = {"scores": Isolate(last), "patterns": Scale(last[:, 0], last * 0, doubled)}
    for what, edit in edits.items():
        with editing(model, edit, layers=[0]):
            edited = model(tokens)[0, -1]
        if torch.equal(clean, edited):
            raise ModelError(
                f"model {model.checkpoint.name!r}: editing attention {what} has no effect on its logits; "
                "its hooks are ignored, so interventions would silently do nothing."
            )

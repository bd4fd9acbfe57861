"""Load a model by name, behind one small protocol. The only package module that imports transformer_lens.

Weights are never processed: transformer-lens' defaults fold value biases, which leaves logits as they are but changes
every gradient and edit of an attention pattern (by up to 8 % of the saliency on the paper's models).
"""

import warnings
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor

from anchorlens import preflight
from anchorlens.hooks import Isolate, Scale, editing
from anchorlens.models.hooked import Hooked, convert
from anchorlens.models.protocol import Lens, Memory, device_of
from anchorlens.preflight import Checkpoint, ModelError

__all__ = ["Hooked", "Lens", "Memory", "device_of", "load"]

# Against the plain Hugging Face run, relative to its largest logit. Observed: float32 1e-6; float64 1e-15 for GPT-2 and
# 1e-7 for GPT-J and GPT-NeoX, where Hugging Face computes attention or rotary angles in float32 all the same.
_AGREEMENT = {"float64": 1e-6, "float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}


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
    model = Hooked(convert(checkpoint, plain, device, getattr(torch, dtype)), tokenizer, checkpoint)
    with torch.no_grad():
        _check_logits(model, plain, dtype)
        _check_edits(model)
        _check_memory(model, dtype)
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


def _check_memory(model: Hooked, dtype: str) -> None:
    """Queries answered after remembered demonstrations must get the answers of the whole prompt."""
    tokens = _probe(model).to(model.cfg.device)
    n, ones = tokens.shape[1] // 2, torch.ones_like(tokens)
    memory = model.remember(tokens[:, :n], ones[:, :n])
    want = model(tokens)[:, -1]
    got = model.all_logits(model.read(memory, tokens[:, n:], ones[:, n:]))
    error = ((got - want).abs().max() / want.abs().max()).item()
    if not error <= _AGREEMENT[dtype]:
        raise ModelError(
            f"model {model.checkpoint.name!r}: answers after remembered tokens differ from those of the whole prompt "
            f"by {error:.1e} of the largest logit (at most {_AGREEMENT[dtype]:.0e} in {dtype}), so its demonstrations "
            "cannot be run once for many queries."
        )

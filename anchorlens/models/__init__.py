"""Load a model by name, behind one small protocol. The only package module that imports transformer_lens.

Weights are never processed: transformer-lens' defaults fold value biases, which leaves logits as they are but changes
every gradient and edit of an attention pattern (by up to 8 % of the saliency on the paper's models).
"""

import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor

from anchorlens import preflight, room
from anchorlens.hooks import Isolate, Scale, editing
from anchorlens.models import bridge, hooked
from anchorlens.models.bridge import Bridged
from anchorlens.models.hooked import Hooked
from anchorlens.models.kinds import ArchitectureError, Kind, kind_of, length_of, window_of
from anchorlens.models.protocol import Lens, Memory, device_of
from anchorlens.preflight import Checkpoint, ModelError
from anchorlens.spreading import spread

__all__ = ["Bridged", "Hooked", "Kind", "Lens", "Memory", "described", "device_of", "load"]

# Against the plain Hugging Face run, relative to its largest logit. Observed: float32 1e-6; float64 1e-15 for GPT-2,
# 1e-7 for GPT-J and GPT-NeoX and 3e-6 for Llama, where Hugging Face computes rotary angles, attention or norms in
# float32 all the same.
_AGREEMENT = {"float64": 1e-5, "float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
# What transformer-lens raises somewhere inside a model that it takes for another
_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


PROBE = 48  # tokens that a model is tried on
AFFORDED = 1e12  # operations of a run of more tokens, several of which are made while a model is loaded


class _UnsupportedError(ModelError):
    """A backend that cannot run a model exactly; another one may."""


def load(
    name: str,
    *,
    backend: str = "auto",
    revision: str = "",
    remote_code: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    n_devices: int = 0,
    random_seed: int | None = None,
) -> Hooked | Bridged:
    """Load a model by name, frozen, without weight processing.

    Args:
        name: toy, toy-random, toy-unanchored, a Hugging Face folder, or a hub id.
        backend: "hooked" (HookedTransformer, which transformer-lens has up to 3.x), "bridge" (TransformerBridge), or
            "auto": the first where it is there and runs the model exactly, otherwise the second.
        revision: branch, tag or commit of a hub model.
        remote_code: whether Python code that comes with a model may be run; such a model is refused otherwise.
        device: cpu, cuda, cuda:N, mps; "auto": cuda where it can be used, otherwise cpu.
        dtype: float32 ("auto"), float64, bfloat16 or float16.
        n_devices: GPUs over which the layers are spread; 0: one, or as many as its weights need.
        random_seed: keep the architecture and draw all weights anew from this seed, as the untrained control.

    Raises:
        ModelError: for a model that cannot be used: wrong folder, unsupported architecture, logits that differ from
            the plain Hugging Face run, or hooks whose edits have no effect.
        MissingModelError: for weights that are not here and cannot be fetched.
    """
    tried = preflight.resolve_backend(backend)
    device, dtype = preflight.resolve_device(device), preflight.resolve_dtype(dtype)
    checkpoint = preflight.locate(name, revision, remote_code=remote_code)
    if random_seed is not None:
        checkpoint = Checkpoint(checkpoint.name, checkpoint.folder, checkpoint.revision, random_seed)
    plain, tokenizer = _hugging_face(checkpoint, getattr(torch, dtype), trust=remote_code)
    reasons = []
    with torch.no_grad():
        tokens = _probe(plain.config, sum(each.numel() for each in plain.parameters()))
        want = _plainly(plain, tokens, name, dtype)
        needed = sum(each.numel() * each.element_size() for each in [*plain.parameters(), *plain.buffers()])
        devices = spread(needed, device, n_devices, room.free_bytes)
        for backend in tried:
            made = partial(_through, backend, checkpoint, plain, tokenizer, devices)
            model, reason = _tried(made, tokens, want, dtype)
            if model is not None:
                model.passed_over = tuple(reasons)
                if model.kind.window and tokens.shape[1] <= model.kind.window:  # what lies beyond was not tried
                    model.cfg.n_ctx = min(model.cfg.n_ctx, model.kind.window)
                return model
            reasons.append(f"{backend}: {reason}")
    raise ModelError("\n".join(reasons))


def _tried(
    made: Callable[[], Hooked | Bridged], tokens: Tensor, want: Tensor, dtype: str
) -> tuple[Hooked | Bridged | None, str]:
    """A model that runs exactly, or why it does not; then nothing of it stays in memory beside the next one."""
    try:
        model = made()
        _check_scaling(model, dtype)
        _check_logits(model, tokens, want, dtype)
        _check_edits(model, tokens)
        _check_memory(model, tokens, dtype)
        return model, ""
    except _UnsupportedError as error:
        return None, str(error)
    except ModelError:
        raise
    except _FAILURES as error:
        if room.is_out_of_memory(error):
            raise
        return None, f"transformer-lens fails in running this architecture: {type(error).__name__}: {error}"


def _plainly(plain: Any, tokens: Int[Tensor, "1 pos"], name: str, dtype: str) -> Tensor:
    """What Hugging Face gives."""
    try:
        return plain(tokens).logits.double()
    except RuntimeError as error:  # mixtures of experts know no float64
        if room.is_out_of_memory(error):
            raise
        raise ModelError(
            f"model {name!r}: Hugging Face itself cannot run its architecture ({plain.config.model_type}) in {dtype} "
            f"on the CPU, where it is tried first: {error}. Take another dtype."
        ) from error


def described(model: Lens) -> str:
    """Which backend runs a model, where, in what, and why not the one that comes first; for people and manifests."""
    where, passed = ", ".join(model.devices), "; passed over: " + "; ".join(model.passed_over)
    dtype = str(model.cfg.dtype).removeprefix("torch.")
    said = f"{model.kind.name} through {model.backend} on {where}, {dtype}"
    if model.kind.window == model.cfg.n_ctx:
        said += f", for prompts of up to {model.cfg.n_ctx} tokens, which its window holds"
    return said + passed if model.passed_over else said


def _through(backend: str, checkpoint: Checkpoint, plain: Any, tokenizer: Any, devices: list[str]) -> Hooked | Bridged:
    try:
        lens: type[Hooked] | type[Bridged] = Hooked if backend == "hooked" else Bridged
        convert = hooked.convert if backend == "hooked" else partial(bridge.convert, tokenizer=tokenizer)
        model = convert(checkpoint, plain, devices)
        return lens(model, tokenizer, checkpoint, kind_of(plain.config, model.cfg.positional_embedding_type))
    except ArchitectureError as error:
        raise _UnsupportedError(str(error)) from error


def _hugging_face(checkpoint: Checkpoint, dtype: torch.dtype, *, trust: bool) -> tuple[Any, Any]:
    with warnings.catch_warnings():  # tqdm asks for ipywidgets, whose bars are useless in a stored notebook
        warnings.filterwarnings("ignore", message="IProgress not found")
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder, given = str(checkpoint.folder), {"local_files_only": True, "trust_remote_code": trust}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **given)
        if checkpoint.random_seed is None:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, attn_implementation="eager", **given
            )
            plain, found = loaded
            if missing := sorted(found["missing_keys"]):  # they would be drawn at random
                raise ModelError(
                    f"model {checkpoint.name!r}: {folder} lacks {len(missing)} weights ({', '.join(missing[:3])}). "
                    "Save the whole model there."
                )
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(checkpoint.random_seed)  # and not those of GPUs, as torch's own
                config = AutoConfig.from_pretrained(folder, **given)
                plain = AutoModelForCausalLM.from_config(
                    config, attn_implementation="eager", trust_remote_code=trust
                ).to(dtype)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:  # torch's own message advises to run what is in it
        raise ModelError(
            f"model {checkpoint.name!r}: its pytorch_model*.bin is damaged, or holds more than weights and would run "
            "code. Save it as safetensors where you trust it: save_pretrained does."
        ) from error
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, SafetensorError) as error:
        if room.is_out_of_memory(error):
            raise
        raise ModelError(f"model {checkpoint.name!r}: Hugging Face cannot load {folder}: {error}") from error
    return plain.eval().requires_grad_(False), tokenizer


def _probe(config: Any, size: int) -> Int[Tensor, "1 pos"]:
    """Tokens spread over the vocabulary, to try a model of ``size`` parameters on.

    A few more than its narrowest layer looks back, where running so many takes seconds and not minutes.
    """
    text = config.get_text_config()
    n = (window_of(text) or 0) + 16
    if n < PROBE or 2 * size * n > AFFORDED:
        n = PROBE
    n = min(n, length_of(text) or n)
    return (torch.arange(n)[None] * 7919 + 11) % text.vocab_size


def _check_scaling(model: Lens, dtype: str) -> None:
    """HookedTransformer leaves out some ways of stretching rotations, an error of a tenth that half precision hides."""
    if model.backend == "hooked" and model.kind.scaled and dtype in ("bfloat16", "float16"):
        raise _UnsupportedError(
            f"model {model.checkpoint.name!r}: its rotations are stretched ({model.kind.scaled}), which "
            f"HookedTransformer reproduces for some models only, and {dtype} is too coarse to see whether it does. Use "
            "backend=bridge, or dtype=float32."
        )


def _check_logits(model: Lens, tokens: Tensor, want: Tensor, dtype: str) -> None:
    got = model(tokens.to(device_of(model))).cpu().double()
    error = ((got - want).abs().max() / want.abs().max()).item()
    if not error <= _AGREEMENT[dtype]:  # a NaN must fail too
        raise _UnsupportedError(
            f"model {model.checkpoint.name!r}: logits through transformer-lens differ from the plain Hugging Face "
            f"run by {error:.1e} of the largest (at most {_AGREEMENT[dtype]:.0e} in {dtype}). "
            f"Its architecture ({model.kind.name}) is not reproduced exactly, so no analysis would be right."
        )


def _check_edits(model: Lens, tokens: Tensor) -> None:
    """Some backends call hooks and ignore what they return; such a model must not be analysed."""
    tokens = tokens.to(device_of(model))
    clean = model(tokens)[0, -1]
    every = torch.arange(tokens.shape[1], device=tokens.device)[None]  # a single cell may be 0, and be so isolated
    shape = (1, model.cfg.n_heads, every.shape[1])
    doubled = torch.full(shape, 2.0, dtype=model.cfg.dtype, device=tokens.device).log()
    edits = {"scores": Isolate(every), "patterns": Scale(every[:, -1], every, doubled)}
    for what, edit in edits.items():
        with editing(model, edit, layers=[0]):
            edited = model(tokens)[0, -1]
        if torch.equal(clean, edited):
            raise _UnsupportedError(
                f"model {model.checkpoint.name!r}: editing attention {what} has no effect on its logits; "
                "its hooks are ignored, so interventions would silently do nothing."
            )


def _check_memory(model: Lens, tokens: Tensor, dtype: str) -> None:
    """Queries answered after remembered demonstrations must get the answers of the whole prompt."""
    tokens = tokens.to(device_of(model))
    n, ones = tokens.shape[1] // 2, torch.ones_like(tokens)
    memory = model.remember(tokens[:, :n], ones[:, :n])
    want = model(tokens)[:, -1]
    got = model.all_logits(model.read(memory, tokens[:, n:], ones[:, n:]))
    error = ((got - want).abs().max() / want.abs().max()).item()
    if not error <= _AGREEMENT[dtype]:
        raise _UnsupportedError(
            f"model {model.checkpoint.name!r}: answers after remembered tokens differ from those of the whole prompt "
            f"by {error:.1e} of the largest logit (at most {_AGREEMENT[dtype]:.0e} in {dtype}), so its demonstrations "
            "cannot be run once for many queries."
        )

"""Models that stay loaded between the runs of a kernel, each handed out only as it was loaded."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anchorlens import preflight

SMALL = 256 * 2**20  # bytes; of larger models one alone is kept
MOST = 4  # models at once


@dataclass
class _Kept:
    lens: Any  # as it was loaded; runs get copies that share the weights
    state: dict[str, Any]
    lent: bool = True


class Residents:
    """``models.load`` that remembers. A model that a run has changed is forgotten, and read anew when next asked for.

    Within one run no model is handed out twice: who loads two, and changes one, must find the other unchanged.
    """

    def __init__(self, load: Callable[..., Any]) -> None:
        self._load, self._signature = load, inspect.signature(load)
        self._kept: dict[tuple, _Kept] = {}  # the latest used last

    def __len__(self) -> int:
        return len(self._kept)

    def load(self, *given: Any, **named: Any) -> Any:
        """As ``models.load``."""
        call = self._signature.bind(*given, **named)
        call.apply_defaults()
        says = dict(call.arguments)
        says["backend"] = preflight.resolve_backend(says["backend"])
        says["device"], says["dtype"] = preflight.resolve_device(says["device"]), preflight.resolve_dtype(says["dtype"])
        checkpoint = preflight.locate(says.pop("name"), says.pop("revision"), remote_code=says["remote_code"])
        key = (checkpoint, checkpoint.fingerprint(), *sorted((name, str(value)) for name, value in says.items()))
        kept = self._kept.pop(key, None)
        if kept is not None and not kept.lent:
            self._kept[key] = kept
            kept.lent = True
            return copy.copy(kept.lens)
        if sum(path.stat().st_size for path in _weights(checkpoint.folder)) > SMALL:
            self._forget_large()
        lens = self._load(*given, **named)
        if nbytes(lens) > SMALL:
            self._forget_large()
        self._kept[key] = _Kept(copy.copy(lens), state(lens))
        while len(self._kept) > MOST:
            del self._kept[next(iter(self._kept))]
        return lens

    def settle(self) -> list[str]:
        """Forget each model that is not as it was loaded, and say what was changed."""
        said = []
        for key, kept in list(self._kept.items()):
            if kept.lent:
                now = state(kept.lens)
                changed = [what for what in kept.state if now[what] != kept.state[what]]
                if changed:
                    said.append(f"model {kept.lens.checkpoint.name!r}: {', '.join(changed)}")
                    del self._kept[key]
                kept.lent = False
        return said

    def _forget_large(self) -> None:
        self._kept = {key: kept for key, kept in self._kept.items() if nbytes(kept.lens) <= SMALL}


def _weights(folder: Path) -> list[Path]:
    files = list(folder.glob("*.safetensors"))
    return files or list(folder.glob("pytorch_model*.bin"))


def nbytes(lens: Any) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(each.numel() * each.element_size() for each in [*lens.model.parameters(), *lens.model.buffers()])


def state(lens: Any) -> dict[str, Any]:
    """All by which a run could tell that a model was used before, but for what it holds only while it runs."""
    modules = dict(lens.model.named_modules())
    tensors = {**dict(lens.model.named_parameters()), **dict(lens.model.named_buffers())}
    return {
        "hooks": {name: found for name, module in modules.items() if any(found := _hooks(module))},
        "weights": {name: (_checksum(each), each.requires_grad, each.grad is None) for name, each in tensors.items()},
        "modules": {name: (type(module), module.training, _attributes(module)) for name, module in modules.items()},
        "settings": {name: repr(value) for name, value in vars(lens.cfg).items()},
        "whose settings": {name: vars(module).get("cfg") is lens.cfg for name, module in modules.items()},
        "tokenizer": _tokenizer(lens.tokenizer),
    }


def _hooks(module: torch.nn.Module) -> list[int]:
    """How many hooks of each kind there are: torch's own, and those that a hook point lists."""
    return [len(held) for name, held in vars(module).items() if name.endswith("hooks") and hasattr(held, "__len__")]


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Names that hide a method or a class attribute, and plain values."""
    plain = (int, float, str, bool, type(None), torch.dtype)
    return {
        name: value if isinstance(value, plain) else _called(value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, plain) or callable(value))
        and (callable(value) or value != getattr(type(module), name, ...))  # a default by another way
    }


def _called(function: Any) -> tuple:
    """A callable itself; of a partial, what it calls with what, since two of them are never equal."""
    parts = [function]
    if isinstance(function, partial):
        parts = [function.func, *function.args, *function.keywords.values(), tuple(function.keywords)]
    return tuple(parts)


def _checksum(tensor: torch.Tensor) -> tuple:
    """Type, shape, device and a checksum of all bits in their order; whole numbers add up without rounding."""
    flat = tensor.detach().contiguous().flatten()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = flat.to(torch.uint8) if tensor.dtype == torch.bool else flat.view(whole)
    total = 0
    for part in bits.split(2**22):
        part = part.to(torch.int64)
        mixed = part ^ (part >> 7) ^ (part >> 29)  # so that sums that wrap around still feel the sign bits
        places = torch.arange(len(part), device=part.device) * 2 + 1
        total = total * 31 + int((mixed * places).sum())
    return str(tensor.dtype), tuple(tensor.shape), str(tensor.device), total


def _tokenizer(tokenizer: Any) -> Any:
    if tokenizer is None:
        return None
    fast = getattr(tokenizer, "backend_tokenizer", None)
    sides = {name: getattr(tokenizer, name, None) for name in ("padding_side", "truncation_side", "model_max_length")}
    return fast.to_str() if fast is not None else tokenizer.get_vocab(), sides, repr(tokenizer.special_tokens_map)

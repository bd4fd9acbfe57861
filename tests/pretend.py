"""Devices that are not there: ``cpu:1`` and so on, which PyTorch takes for the same and these tensors do not.

Within ``devices()``, a tensor that is moved to ``cpu:N`` says that it lies there, and an operation that meets tensors
of two such devices fails, as it would on GPUs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class Placed(torch.Tensor):
    """A tensor on a device that is not there; ``inner`` is what it really is."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> "Placed":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Placed({self.inner}, {self.device})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    met = [each for each in flat if isinstance(each, torch.Tensor)]
    met = [each for each in met if isinstance(each, Placed) or each.numel()]  # torch.tensor([], device=) is not asked
    if func in _INDEXED:  # indices may lie on the CPU
        met = [each for each in met if isinstance(each, Placed) or each.dtype != torch.int64]
    found = {each.device for each in met if each.dim()} or {each.device for each in met if isinstance(each, Placed)}
    asked = kwargs.get("device")
    if len(found) > 1 and func is not torch.ops.aten.copy_.default:
        raise RuntimeError(f"{func} met tensors on {sorted(map(str, found))}")
    where = torch.device(asked) if asked is not None else next(iter(found), torch.device("cpu"))
    if func is torch.ops.aten.copy_.default:
        where = args[0].device
    given = tree_map(lambda each: each.inner if isinstance(each, Placed) else each, (args, kwargs))
    if asked is not None:
        given[1]["device"] = torch.device("cpu")
    out = func(*given[0], **given[1])
    if where.index is None:
        return out
    wrapped = tree_map(lambda each: Placed(each, where) if isinstance(each, torch.Tensor) else each, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


class _Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def devices() -> Iterator[None]:
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter that moves is another one
    try:
        with _Pretending():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)

"""What a notebook can set and a later one would find: each with how it is read and how it is set back."""

import gc
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.io
import torch


class Setting(NamedTuple):
    """``put`` makes it what ``get`` once gave; without it, it can only be seen."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], object] | None


def settings(shell: Any) -> list[Setting]:
    """Everything that is looked after in the kernel of IPython's ``shell``."""
    backends, loggers = torch.backends, ["", *logging.root.manager.loggerDict]
    return [
        Setting("gradients", torch.is_grad_enabled, torch.set_grad_enabled),
        Setting("inference mode", torch.is_inference_mode_enabled, None),
        Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype),
        _attribute(torch, "Storage"),  # bound anew with each default dtype
        Setting("default device", lambda: str(torch.get_default_device()), lambda _: torch.set_default_device(None)),
        Setting("threads", torch.get_num_threads, torch.set_num_threads),
        Setting("matrix precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        Setting("determinism", torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
        Setting("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        *(
            Setting(
                f"autocast on {kind}",
                lambda kind=kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
                lambda was, kind=kind: (
                    torch.set_autocast_enabled(kind, was[0]),
                    torch.set_autocast_dtype(kind, was[1]),
                ),
            )
            for kind in ("cpu", "cuda")
        ),
        *(_attribute(backends.cudnn, name) for name in ("benchmark", "deterministic", "enabled", "allow_tf32")),
        Setting("flash attention", backends.cuda.flash_sdp_enabled, backends.cuda.enable_flash_sdp),
        Setting("lean attention", backends.cuda.mem_efficient_sdp_enabled, backends.cuda.enable_mem_efficient_sdp),
        Setting("plain attention", backends.cuda.math_sdp_enabled, backends.cuda.enable_math_sdp),
        Setting("numpy's errors", np.geterr, lambda was: np.seterr(**was)),
        Setting("numpy's printing", np.get_printoptions, lambda was: np.set_printoptions(**was)),
        Setting("pandas' options", lambda: dict(_flat(pd.options.d)), _put_options),
        _attribute(plotly.io.templates, "default"),
        _attribute(plotly.io.renderers, "default"),
        Setting("plotly's defaults", lambda: _public(plotly.io.defaults), _put_all(plotly.io.defaults)),
        Setting("folder", os.getcwd, os.chdir),
        Setting("environment", lambda: dict(os.environ), _put_environment),
        _list("sys.path", sys.path),
        _list("sys.meta_path", sys.meta_path),
        Setting("recursion", sys.getrecursionlimit, sys.setrecursionlimit),
        Setting("collector", gc.isenabled, lambda was: gc.enable() if was else gc.disable()),
        _list("warnings", warnings.filters),  # type: ignore[arg-type]
        Setting("warnings shown", lambda: warnings.showwarning, lambda was: setattr(warnings, "showwarning", was)),
        Setting("logging", lambda: _levels(loggers), _put_levels),
        _list("log handlers", logging.getLogger().handlers),
        Setting("signals", _signals, _put_signals),
        Setting(
            "IPython's events", lambda: {n: list(c) for n, c in shell.events.callbacks.items()}, _put_events(shell)
        ),
        _list("code transformers", shell.ast_transformers),
        _list("line transformers", shell.input_transformers_cleanup),
        _list("input transformers", shell.input_transformers_post),
        Setting("extensions", lambda: set(shell.extension_manager.loaded), None),
        Setting("module hooks", lambda: {name: len(held) for name, held in _module_hooks().items()}, None),
    ]


def quiet() -> None:
    """Set back what has a reset of its own and no reading."""
    torch.set_flush_denormal(False)
    torch.set_printoptions(profile="default")
    signal.setitimer(signal.ITIMER_REAL, 0)
    filters = list(warnings.filters)
    warnings.resetwarnings()  # what is shown once is shown again
    warnings.filters[:] = filters  # type: ignore[index]


def chance() -> tuple:
    """The state of every global generator."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    legacy = np.random.get_state()  # noqa: NPY002 (a notebook may use it)
    return random.getstate(), legacy, torch.random.get_rng_state(), cuda


def put_chance(was: tuple) -> None:
    """Give the global generators the states they had; those of a GPU not in use then begin with the CPU's seed.

    Also where none is in use yet, since the seed that a run sets waits for one.
    """
    random.setstate(was[0])
    np.random.set_state(was[1])  # noqa: NPY002
    torch.random.set_rng_state(was[2])
    if was[3] is not None:
        torch.cuda.set_rng_state_all(was[3])
    else:
        torch.cuda.manual_seed_all(torch.initial_seed())


def _attribute(holder: Any, name: str) -> Setting:
    said = f"{getattr(holder, '__name__', type(holder).__name__)}.{name}"
    return Setting(said, lambda: getattr(holder, name), lambda was: setattr(holder, name, was))


def _list(name: str, held: list) -> Setting:
    return Setting(name, lambda: list(held), lambda was: held.__setitem__(slice(None), was))


def _public(holder: Any) -> dict[str, Any]:
    return {name: getattr(holder, name) for name in dir(holder) if not name.startswith("_")}


def _put_all(holder: Any) -> Callable[[dict[str, Any]], None]:
    def put(was: dict[str, Any]) -> None:
        for name, value in was.items():
            if getattr(holder, name) != value:
                setattr(holder, name, value)

    return put


def _flat(options: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _put_options(was: dict[str, Any]) -> None:
    for name, now in list(_flat(pd.options.d)):
        if now != was[name]:
            pd.set_option(name, was[name])


def _put_environment(was: dict[str, str]) -> None:
    for name in set(os.environ) - set(was):
        del os.environ[name]
    os.environ.update(was)


def _levels(names: list[str]) -> dict[str, int]:
    return {name: logging.getLogger(name).level for name in names} | {"disabled": logging.root.manager.disable}


def _put_levels(was: dict[str, int]) -> None:
    logging.disable(was["disabled"])
    for name in set(was) - {"disabled"}:
        logging.getLogger(name).setLevel(was[name])


def _signals() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _put_signals(was: dict[int, Any]) -> None:
    for number, handler in was.items():
        if signal.getsignal(number) is not handler and handler is not None:
            signal.signal(number, handler)


def _put_events(shell: Any) -> Callable[[dict[str, list]], None]:
    def put(was: dict[str, list]) -> None:
        for name, callbacks in was.items():
            shell.events.callbacks[name][:] = callbacks

    return put


def _module_hooks() -> dict[str, Any]:
    """Hooks on every torch module at once."""
    module = torch.nn.modules.module
    return {name: held for name, held in vars(module).items() if name.startswith("_global") and name.endswith("hooks")}

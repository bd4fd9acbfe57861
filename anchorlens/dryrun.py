"""What a run would take, told before anything is loaded: from config.json, tokenizer and rows, without torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anchorlens import lengths, parameters, planner, preflight, room, rows, spreading, store
from anchorlens.lengths import Prompts
from anchorlens.parameters import ParameterError
from anchorlens.rows import Example

DEPTHS = (1, 3, 5, 7)  # of isolation, where none are given
ANALYSES = {
    "0_tour": ("saliency", "isolation", "extraction", "re-weighting", "compression", "diagnosis"),
    "2_1_information_flow": ("saliency",),
    "2_2_isolation": ("isolation",),
    "2_3_extraction": ("extraction",),
    "3_1_reweighting": ("re-weighting",),
    "3_2_compression": ("compression",),
    "3_3_diagnosis": ("diagnosis",),
}
TOUR = {"draws": 5, "twin": False, "sets": 0, "epochs": 10, "train_shots": 4}  # what the tour sets by itself


@dataclass(frozen=True)
class Need:
    """What one analysis takes: bytes at its peak beside the weights, prompts in a batch, and work.

    ``tokens`` are pushed through all layers (through half of them counts half); ``least`` is the peak of the smallest
    batch. ``checkpoint``: whether layers would be run anew in a backward pass.
    """

    analysis: str
    peak: int | float
    least: int | float
    batch: int
    batch_tokens: int
    tokens: int | float
    operations: int | float
    checkpoint: bool = False


def estimate(
    notebook: Path, values: Mapping[str, Any], root: Path, *, read: Callable[..., list[Example]] = rows.load
) -> dict[str, Any]:
    """What running a notebook with these parameters (defaults filled in) would take, and whether it is done already.

    ``read`` gives the rows, as ``rows.load``.

    Raises:
        ParameterError, ModelError, TaskError, ShapeError: as a run would, or for a model whose size cannot be told.
    """
    facts = parameters.examine(values, notebook)
    checkpoint = preflight.locate(values["model"], values["revision"], remote_code=values["remote_code"])
    shape = planner.of_config(json.loads((checkpoint.folder / "config.json").read_text()), facts["dtype"])
    _check_layers(values, shape.n_layers)
    weights = planner.weight_bytes(shape)
    free, devices = _room(weights, facts["device"], values["n_devices"])
    given = {**TOUR, **values} if notebook.stem == "0_tour" else dict(values)
    prompts = lengths.prompts(given, checkpoint, read)
    known = ANALYSES.get(notebook.stem, ANALYSES["0_tour"])
    room_left = max(0, free - weights) // devices
    enough = planner.enough(shape, facts["device"])
    needs = [_need(analysis, shape, prompts, given, room_left, enough) for analysis in known]
    loading = _loading(weights, facts["device"], free)
    made_of = parameters.content(notebook, values, facts)
    done = store.Run(root.resolve() / notebook.stem / store.key(made_of))
    return {
        "notebook": notebook.stem,
        "cached": done.whole and not store.damage(done),
        "folder": str(done.final),
        "model": {"name": values["model"], "dtype": facts["dtype"], "weights": weights, **asdict(shape)},
        "device": facts["device"],
        "n_devices": devices,
        "free": free,
        "prompts": asdict(prompts) | {"mean": prompts.mean, "longest": prompts.longest},
        "memory": planner.memory_bytes(shape, prompts.shown[1]),
        "analyses": [asdict(need) for need in needs],
        "known": notebook.stem in ANALYSES,
        "too_long": prompts.longest > shape.n_ctx,
        "loading": 2 * weights,
        "loads": loading,
        "fits": loading and weights + devices * max(need.least for need in needs) <= free,
    }


def _check_layers(values: Mapping[str, Any], n_layers: int) -> None:
    """Refuse layers that the model does not have, as the analyses do."""
    if deep := [depth for depth in values.get("depths", []) if depth > n_layers]:
        raise ParameterError(f"depths={deep}: this model has {n_layers} layers, so each may be 0 to {n_layers}.")
    if values.get("layer", -1) >= n_layers:
        raise ParameterError(f"layer={values['layer']}: this model has layers 0 to {n_layers - 1}; -1 chooses one.")


def _room(weights: int, device: str, n_devices: int) -> tuple[int, int]:
    """Bytes free where the model goes, and over how many devices; layers are spread evenly over them."""
    try:
        chosen = spreading.spread(weights, device, n_devices, room.free_bytes)
    except preflight.ModelError:
        spreading.check(device, n_devices)  # then it is too large, as the sum will tell
        return room.free_bytes(device), 1
    return len(chosen) * min(map(room.free_bytes, chosen)), len(chosen)


def _loading(weights: int, device: str, free: int) -> bool:
    """Whether a model can be loaded: until it is checked, Hugging Face's own is there too, on the CPU."""
    if device == "cpu":
        return 2 * weights <= free
    return weights <= free and weights <= room.free_bytes("cpu")


def report(found: Mapping[str, Any]) -> str:
    """The same in words."""
    model, prompts = found["model"], found["prompts"]
    spread = f" and the next {found['n_devices'] - 1}" if found["n_devices"] > 1 else ""
    lines = [
        f"{found['notebook']}: {'done before, would be returned at once' if found['cached'] else 'not done before'}",
        f"model {model['name']}: {model['n_layers']} layers of {model['d_model']}, {model['n_heads']} heads "
        f"({model['kv_heads']} of keys and values), {model['d_vocab']} tokens; weights {_size(model['weights'])} in "
        f"{model['dtype']}",
        f"device {found['device']}{spread}: {_size(found['free'])} free",
        f"{prompts['number']} prompts, {prompts['sets']} sets of demonstrations; tokens {prompts['mean']:.0f} on "
        f"average, at most {prompts['longest']} ({prompts['said']})",
        f"keys and values of a set of demonstrations: {_size(found['memory'])} at most",
    ]
    if not found["known"]:
        lines.append("what this notebook runs is not known here; these are all analyses there are:")
    for need in found["analyses"]:
        anew = ", layers run anew on the way back" if need["checkpoint"] else ""
        lines.append(
            f"{need['analysis']}: {_size(need['peak'])} at its peak beside the weights, batches of {need['batch']} "
            f"prompts ({need['batch_tokens']} tokens), {need['tokens']:,.0f} tokens through all layers, "
            f"{need['operations']:.2g} operations{anew}"
        )
    if found["too_long"]:
        lines.append(
            f"some prompts are TOO LONG, the model reads at most {model['n_ctx']} tokens: with too_long=error the run "
            "would fail, with too_long=skip they are left out (and are counted here)"
        )
    if not found["loads"]:
        lines.append(
            f"loading takes {_size(found['loading'])} for a moment: the model is there twice until it has been checked"
        )
    lines.append(
        "fits into memory" if found["fits"] else "does NOT fit into memory: take a smaller dtype, or fewer shots"
    )
    return "\n".join(lines)


_size = room.in_units


# --- analyses ---


def _need(
    analysis: str, shape: planner.Shape, prompts: Prompts, values: Mapping[str, Any], free: int, enough: int
) -> Need:
    length, before = prompts.asked[1], prompts.shown[1]

    def batch(peak: Any, tokens: int) -> int:
        most = values["batch_tokens"] // tokens if values["batch_tokens"] else planner.rows(peak, tokens, free, enough)
        return prompts.rows * min(prompts.number, max(1, most // prompts.rows))

    if analysis == "saliency":
        return _saliency(shape, prompts, values, free, batch)
    peaks = {
        "extraction": lambda n: planner.extraction(shape, n, length, before),
        "diagnosis": lambda n: planner.extraction(shape, n, length, before, shape.n_layers),
        "isolation": lambda n: planner.isolation(shape, n, length, before, _firsts(shape, values)),
        "compression": lambda n: planner.compression(shape, n, length, before, prompts.bare[1]),
        "re-weighting": lambda n: planner.reweighting(shape, n, length, before, _taught(prompts, values)),
    }
    remembered = analysis == "re-weighting"
    each = planner.remembering if remembered else planner.reading
    n = batch(lambda n: each(shape, n, length, before), length)
    shows, asks = _work(analysis, shape, prompts, values)
    asks *= prompts.rows
    shown, asked = prompts.shown[0], prompts.asked[0]
    spent = shows * planner.operations(shape, round(shown)) + asks * planner.operations(
        shape, round(asked), round(shown)
    )
    peak = peaks[analysis]
    least = peak(prompts.rows)
    return Need(analysis, peak(n), least, n // prompts.rows, n * length, shows * shown + asks * asked, spent)


def _saliency(shape: planner.Shape, prompts: Prompts, values: Mapping[str, Any], free: int, batch: Any) -> Need:
    longest, times = prompts.longest, 1 + values.get("twin", False)
    n = batch(lambda n: planner.differentiating(shape, n, longest, free), longest)
    anew = planner.saliency(shape, n, longest) > planner.MOST * free
    peak, least = (planner.saliency(shape, k, longest, checkpoint=anew) for k in (n, prompts.rows))
    least = min(least, planner.saliency(shape, prompts.rows, longest, checkpoint=True))
    spent = planner.operations_with_gradient(shape, round(prompts.mean), checkpoint=anew)
    times *= prompts.number * prompts.rows
    return Need("saliency", peak, least, n // prompts.rows, n * longest, times * prompts.mean, times * spent, anew)


def _work(analysis: str, shape: planner.Shape, prompts: Prompts, values: Mapping[str, Any]) -> Sequence[int | float]:
    """How often sets of demonstrations, and queries, go through all layers."""
    sets, number = prompts.sets, prompts.number
    if analysis == "isolation":
        reaching = [first for first in _firsts(shape, values) if first < shape.n_layers - 1]
        below = sum(shape.n_layers - first for first in reaching) / shape.n_layers
        return sets * (1 + 2 * below), number * (1 + 2 * (below - len(reaching) / shape.n_layers))
    if analysis == "diagnosis" and values["sets"] and not values["prompts"]:
        return sets + len(values["seeds"]) * values["sets"], 2 * number
    if analysis == "compression":
        rules = 2 if values.get("positions") == "both" and not values["as_published"] else 1
        text = prompts.bare[0] / prompts.shown[0]
        return sets * (1 + text), number * (2 + rules * (3 + values["draws"]))
    if analysis == "re-weighting":
        deeper = 1 + values["train_shots"] / values["shots"]
        steps = 2 * values["epochs"] * _taught(prompts, values) / max(1, prompts.asked[0])
        return sets * (2 + deeper), 2 * number + sets * (_taught(prompts, values) + steps)
    return sets, number


def _firsts(shape: planner.Shape, values: Mapping[str, Any]) -> list[int]:
    depths = values.get("depths") or [depth for depth in DEPTHS if depth <= shape.n_layers]
    return [first for depth in depths for first in ((0 if depth else shape.n_layers), shape.n_layers - depth)]


def _taught(prompts: Prompts, values: Mapping[str, Any]) -> int:
    return values["train_shots"] * prompts.classes

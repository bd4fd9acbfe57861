"""A model's folder: whether all its files are there, are what can be analysed, and bring no code that nobody asked for.

Only config files, names and sizes are read, and nothing of the model is run.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anchorlens.decoders import why_not

TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")
CONFIGS = ("config.json", "tokenizer_config.json")  # those that may name code to run
_OTHER_WEIGHTS = ("*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.pt", "*.pth", "consolidated*", "*.ckpt", "*.npz")
_QUANTISED = ("quantize_config.json", "quant_config.json")  # beside config.json, of GPTQ and AWQ in their early days
SIGNS = ("adapter_config.json", *_QUANTISED)  # files that are there only where a model cannot be used
GGUF = (
    "is GGUF, a format of llama.cpp whose weights are mostly quantised. Give the Hugging Face checkpoint that it was "
    "made from: a folder with config.json, weights and tokenizer, or a hub id."
)
_POINTER = b"version https://git-lfs"


class ModelError(ValueError):
    """A model, device or dtype that cannot be used as named."""


class IncompleteModelError(ModelError):
    """A folder in which some of a model's files are missing."""


class MissingModelError(ModelError):
    """Weights that are not on this machine and cannot be fetched."""


def check(name: str, folder: Path, *, remote_code: bool = False) -> None:
    """Refuse a folder that does not hold a whole decoder with its tokenizer.

    Args:
        name: what the model was called, for the message.
        folder: as ``save_pretrained`` writes it.
        remote_code: whether code that the model brings along may be run.

    Raises:
        IncompleteModelError: for a file that is not there, or not whole.
        ModelError: for a model of another kind, another format, or with code of its own.
    """
    check_config(name, folder, remote_code=remote_code)
    check_files(name, folder, remote_code=remote_code)


def check_config(name: str, folder: Path, *, remote_code: bool = False) -> None:
    """The part of ``check`` that needs the config files alone, so before weights are fetched."""
    if (folder / "adapter_config.json").is_file():
        base = read(name, folder / "adapter_config.json").get("base_model_name_or_path")
        raise ModelError(
            f"model {name!r}: the folder holds an adapter (adapter_config.json) to {base!r}, and no model by itself. "
            "Merge the adapter first: PeftModel.from_pretrained(base, folder).merge_and_unload(), then save_pretrained "
            "it, and give that folder."
        )
    if not (folder / "config.json").is_file():
        raise _no_config(name, folder)
    config = read(name, folder / "config.json")
    if reason := why_not(config):
        raise ModelError(f"model {name!r} {reason}")
    if found := [file for file in _QUANTISED if (folder / file).is_file()]:
        raise ModelError(
            f"model {name!r} is quantised ({found[0]}), which transformer-lens cannot hook exactly. Give the "
            "checkpoint in float32, float16 or bfloat16 that it was made from."
        )
    if (code := named_code(name, folder)) and not remote_code:
        said = "; ".join(f"{file} names {', '.join(sorted(modules))}" for file, modules in code.items())
        raise ModelError(
            f"model {name!r} comes with code of its own ({said}, by auto_map), which loading would run on this "
            "machine. Read those files, and if you trust them give remote_code=true; or delete auto_map there, "
            f"if transformers knows model type {config.get('model_type')!r} by itself."
        )


def check_files(name: str, folder: Path, *, remote_code: bool = False) -> None:
    """The part of ``check`` about weights, tokenizer and code."""
    check_weights(name, folder)
    check_tokenizer(name, folder)
    if remote_code:
        modules = sorted({module for each in named_code(name, folder).values() for module in each})
        if lacking := [module for module in modules if not (folder / module).is_file()]:
            raise IncompleteModelError(
                f"model {name!r}: the folder lacks {', '.join(lacking)}, which auto_map names; copy them there."
            )


def check_weights(name: str, folder: Path) -> None:
    """Refuse a folder whose weights are not all there, or cut short."""
    held = weights(folder)
    index = [path for kind in ("safetensors", "bin") for path in folder.glob(f"*.{kind}.index.json")]
    if not held and not index:
        others = sorted({path.name for pattern in _OTHER_WEIGHTS for path in folder.glob(pattern)})
        found = f"; {', '.join(others[:3])} cannot be read, convert it" if others else ""
        raise IncompleteModelError(
            f"model {name!r}: the folder has no weights (*.safetensors or pytorch_model*.bin){found}; save the model "
            "there with save_pretrained."
        )
    used = "safetensors" if not held or held[0].suffix == ".safetensors" else "bin"
    try:
        shards = [read(name, path)["weight_map"].values() for path in folder.glob(f"*.{used}.index.json")]
        lacks = sorted({str(shard) for each in shards for shard in each if not (folder / shard).is_file()})
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(
            f"model {name!r}: its weight index cannot be read ({type(error).__name__}: {error}); save the model anew."
        ) from error
    if lacks:
        raise IncompleteModelError(
            f"model {name!r}: the folder lacks {', '.join(lacks)}, which its index names; copy them there."
        )
    for path in held:
        if fault := _fault(path):
            raise IncompleteModelError(f"model {name!r}: {path.name} {fault}")


def check_tokenizer(name: str, folder: Path) -> None:
    """Refuse a folder without a tokenizer."""
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise IncompleteModelError(
            f"model {name!r}: the folder has no tokenizer (none of {', '.join(TOKENIZERS)}). "
            "Save it there with tokenizer.save_pretrained(folder)."
        )


def weights(folder: Path) -> list[Path]:
    """The files that hold a model's weights: safetensors where there are some, otherwise pytorch_model*.bin."""
    kept = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith(("adapter_", "consol"))]
    return kept or sorted(folder.glob("pytorch_model*.bin"))


def named_code(name: str, folder: Path) -> dict[str, set[str]]:
    """By config file, the Python files that its ``auto_map`` would have run.

    Raises:
        ModelError: for code that lies in another repository, and would be fetched while the model is loaded.
    """
    found: dict[str, set[str]] = {}
    for file in CONFIGS:
        auto_map = read(name, folder / file).get("auto_map") if (folder / file).is_file() else None
        for reference in _leaves(auto_map):
            repository, _, local = reference.rpartition("--")
            module = local.rpartition(".")[0] or local
            if repository:  # taken from there, or from its cache, whatever lies in the folder
                raise ModelError(
                    f"model {name!r}: {file} names code of another repository, {repository!r}, which would be fetched "
                    f"and run. Copy its {module}.py into a folder of the model and write {local!r} in auto_map there."
                )
            found.setdefault(file, set()).add(f"{module}.py")
    return found


def _leaves(value: Any) -> Iterator[str]:
    """All strings in the values of an ``auto_map``: names, or pairs of them for a slow and a fast tokenizer."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)


def read(name: str, path: Path) -> dict[str, Any]:
    """A model's JSON file.

    Raises:
        ModelError: for one that cannot be read, or holds no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {name!r}: its {path.name} cannot be read ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(found, dict):
        raise ModelError(
            f"model {name!r}: its {path.name} holds a {type(found).__name__}, expected an object; mend it."
        )
    return found


def _no_config(name: str, folder: Path) -> ModelError:
    if found := sorted(path.name for path in folder.glob("*.gguf")):
        return ModelError(f"model {name!r}: the folder holds {found[0]}, which {GGUF}")
    if (folder / "model_index.json").is_file():
        return ModelError(
            f"model {name!r}: the folder holds a diffusion pipeline (model_index.json), which makes images. "
            "Give a decoder that predicts the next token."
        )
    return IncompleteModelError(
        f"model {name!r}: the folder has no config.json; give a folder saved by save_pretrained."
    )


def _fault(path: Path) -> str:
    """What is wrong with a file of weights, as far as its first bytes and its size tell; empty: nothing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(_POINTER):
            return "is a pointer of Git LFS and not the file itself; run `git lfs pull` there."
        if path.suffix != ".safetensors":
            return "" if size else "is empty; copy or fetch it again."
        length = int.from_bytes(head[:8], "little")
        if size < 8 or length > size - 8:
            return f"is cut short or no safetensors file ({size} bytes); copy or fetch it again."
        file.seek(8)
        try:
            tensors = [each for key, each in json.loads(file.read(length)).items() if key != "__metadata__"]
            want = 8 + length + max((each["data_offsets"][1] for each in tensors), default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
            return f"has a header that cannot be read ({type(error).__name__}); copy or fetch it again."
    return "" if size >= want else f"is cut short: {size} bytes where its header names {want}; copy or fetch it again."

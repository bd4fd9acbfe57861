"""What can be known of a model and this machine before torch is imported, so that a wrong name fails at once.

A model is a shipped toy, a Hugging Face folder, or a hub id; ``locate`` turns its name into a folder on this machine.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

TOY_FOLDER = Path(__file__).parent / "toy" / "models"
TOY_SEED = 0  # of toy-random's weights
TOYS = ("toy", "toy-random", "toy-unanchored")
DTYPES = ("float32", "float64", "bfloat16", "float16")
BACKENDS = ("auto", "hooked", "bridge")
PATIENCE = 1.2  # seconds to wait for the hub before calling it unreachable

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")
_SMALL = 256 * 2**20  # bytes up to which weights are hashed whole


class ModelError(ValueError):
    """A model, device or dtype that cannot be used as named."""


class IncompleteModelError(ModelError):
    """A folder in which some of a model's files are missing."""


class MissingModelError(ModelError):
    """Weights that are not on this machine and cannot be fetched."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's files are; ``random_seed`` asks for its untrained twin, with weights drawn from a seed."""

    name: str
    folder: Path
    revision: str = ""  # commit of a hub model
    random_seed: int | None = None

    @property
    def toy(self) -> bool:
        """Whether it is one of the shipped toys, which know only their own words."""
        return self.name in TOYS

    def fingerprint(self) -> str:
        """What identifies the weights: the hub's commit, or a hash of the files."""
        twin = "" if self.random_seed is None else f" random {self.random_seed}"
        return (f"commit {self.revision}" if self.revision else f"sha256 {_hash_of(self.folder)}") + twin


def locate(name: str, revision: str = "", *, fetch: bool = True) -> Checkpoint:
    """Find the files of model ``name``: a shipped toy, a Hugging Face folder, or a hub id (fetched when ``fetch``).

    Raises:
        ModelError: for a folder that is not a model's, or a name that is none.
        MissingModelError: for a hub id that is not in the cache while the hub cannot be reached, or does not have it.
    """
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:
        raise MissingModelError(f"model {name!r}: {error}") from error
    if revision and (name in TOYS or folder.is_dir()):
        raise ModelError(f"revision={revision!r}: model {name!r} is not from the hub and has none; leave it empty.")
    if name in TOYS:
        if name == "toy-random":
            return Checkpoint(name, TOY_FOLDER / "toy", random_seed=TOY_SEED)
        return Checkpoint(name, TOY_FOLDER / name)
    if folder.is_dir():
        _check_folder(name, folder)
        return Checkpoint(name, folder)
    if folder.exists() or name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        found, kind = ("a file", ModelError) if folder.exists() else ("nothing there", MissingModelError)
        raise kind(
            f"model {name!r}: expected a folder with config.json, weights and tokenizer, found {found}. "
            f"Give such a folder, a hub id like gpt2-xl, or one of {', '.join(TOYS)}."
        )
    return _from_hub(name, revision, fetch=fetch)


def _check_folder(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise IncompleteModelError(
            f"model {name!r}: the folder has no config.json; give a folder saved by save_pretrained."
        )
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise IncompleteModelError(
            f"model {name!r}: the folder has no weights (*.safetensors or pytorch_model*.bin); save the model there."
        )
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise IncompleteModelError(
            f"model {name!r}: the folder has no tokenizer (none of {', '.join(_TOKENIZERS)}). "
            "Save it there with tokenizer.save_pretrained(folder)."
        )
    try:
        kinds = json.loads((folder / "config.json").read_text()).get("architectures") or []
        used = "safetensors" if any(folder.glob("*.safetensors")) else "bin"
        index = folder.glob(f"*.{used}.index.json")
        shards = [json.loads(path.read_text())["weight_map"].values() for path in index]
    except (ValueError, AttributeError, KeyError) as error:
        raise ModelError(f"model {name!r}: its config.json or weight index cannot be read ({error}).") from error
    if missing := sorted({shard for each in shards for shard in each if not (folder / shard).is_file()}):
        raise IncompleteModelError(
            f"model {name!r}: the folder lacks {', '.join(missing)}, which its index names; copy them there."
        )
    if kinds and not any(kind.endswith(("CausalLM", "LMHeadModel")) for kind in kinds):
        raise ModelError(f"model {name!r} is a {kinds[0]}; only decoders that predict the next token can be analysed.")


def _from_hub(name: str, revision: str, *, fetch: bool) -> Checkpoint:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision or None)
    except HFValidationError as error:
        raise ModelError(f"model {name!r} is no folder and cannot be a hub id: {error}") from error
    if isinstance(config, str):
        folder = Path(config).parent
        with contextlib.suppress(IncompleteModelError):  # an interrupted download leaves some files out: fetch them
            _check_folder(name, folder)
            return Checkpoint(name, folder, revision=folder.name)
    if not fetch:
        raise MissingModelError(f"model {name!r} is not on this machine.")
    if not hub_reachable():
        near = f" For the shipped model write {TOYS[0]!r}." if name.startswith("to") else ""
        raise MissingModelError(
            f"model {name!r} is not on this machine (no such folder, not in the hub cache), and the hub cannot be "
            f"reached. Connect to the network, or give a folder that holds the model.{near}"
        )
    return _download(name, revision)


def _download(name: str, revision: str) -> Checkpoint:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(name, revision=revision or None, timeout=10)
        files = [sibling.rfilename for sibling in info.siblings or [] if "/" not in sibling.rfilename]
        weights = [f for f in files if f.endswith(".safetensors")] or [f for f in files if f.endswith(".bin")]
        texts = [f for f in files if f.endswith((".json", ".txt", ".model")) and "index" not in f]
        kind = weights[0].rsplit(".", 1)[-1] if weights else ""
        texts += [f for f in files if f.endswith(f".{kind}.index.json")]
        # by the name asked for, so that the cache knows it offline
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=weights + texts))
    except GatedRepoError as error:
        raise MissingModelError(
            f"model {name!r} is gated: accept its licence on its hub page, then set HF_TOKEN or run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise MissingModelError(
            f"model {name!r} has no revision {revision!r}; leave it empty for the newest."
        ) from error
    except RepositoryNotFoundError as error:
        raise MissingModelError(f"the hub has no model {name!r} (or it is private and needs HF_TOKEN).") from error
    except (HTTPError, OSError) as error:
        raise MissingModelError(f"model {name!r} could not be fetched: {type(error).__name__}: {error}") from error
    _check_folder(name, folder)
    return Checkpoint(name, folder, revision=folder.name)


def hub_reachable() -> bool:
    """Whether the hub answers within ``PATIENCE`` seconds (name look-up included)."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PATIENCE).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # it answered
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)  # a look-up that hangs cannot be timed out in any other way
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()


def resolve_device(device: str) -> str:
    """The device that ``device`` means: "auto" is cuda where this torch can use it, otherwise cpu.

    Apple's mps is used when named, never by itself: transformer-lens warns of wrong results there.
    """
    if device == "auto":
        return "cuda" if cuda_devices() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ModelError(f"device={device!r}: it may be 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'.")
    if device == "mps" and sys.platform != "darwin":
        raise ModelError("device='mps': only Apple machines have one; use 'auto' or 'cpu'.")
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= cuda_devices():
        raise ModelError(
            f"device={device!r}: this machine, or this build of torch, has no such CUDA device; use 'auto' or 'cpu'."
        )
    return device


def resolve_dtype(dtype: str) -> str:
    """The dtype that ``dtype`` means: "auto" is float32 everywhere, since half precision changes gradients."""
    if dtype == "auto":
        return "float32"
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r}: it may be 'auto', {', '.join(map(repr, DTYPES))}.")
    return dtype


def resolve_backend(backend: str) -> tuple[str, ...]:
    """The backends to try, one after the other; ``HookedTransformer`` is in transformer-lens up to 3.x."""
    if backend not in BACKENDS:
        raise ModelError(f"backend={backend!r}: it may be {', '.join(map(repr, BACKENDS[:-1]))} or {BACKENDS[-1]!r}.")
    version = metadata.version("transformer-lens")
    hooked = int(version.partition(".")[0]) < 4
    if backend == "hooked" and not hooked:
        raise ModelError(
            f"backend='hooked': transformer-lens {version} is installed, which has no HookedTransformer. Install an "
            "earlier one with `pip install 'transformer-lens>=3.9,<4'`, or use backend=bridge."
        )
    if backend == "auto":
        return ("hooked", "bridge") if hooked else ("bridge",)
    return (backend,)


def cuda_devices() -> int:
    """How many there are; asked of the driver and of torch's build, without importing torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.cuda.device_count()
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).parent / "version.py" if spec and spec.origin else None
    if version is None or not version.is_file() or not re.search(r"^cuda\b.*= '", version.read_text(), re.M):
        return 0
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0)
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        return count.value if found else 0
    except OSError:
        return 0


def _hash_of(folder: Path) -> str:
    """Hash of config, tokenizer and weights; of large weights, of their size, time and 64 evenly spread blocks."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".json", ".txt", ".model", ".safetensors", ".bin"} or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _SMALL:
                digest.update(file.read())
                continue
            digest.update(f"{path.stat().st_mtime_ns}\n".encode())  # an edit in place may fall between the blocks
            for block in range(64):
                file.seek(block * (size - 2**20) // 63)
                digest.update(file.read(2**20))
    return digest.hexdigest()

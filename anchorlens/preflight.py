"""What can be known of a model and this machine before torch is imported, so that a wrong name fails at once.

A model is a shipped toy, a Hugging Face folder, or a hub id; ``locate`` turns its name into a folder on this machine.
"""

import ctypes
import hashlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from anchorlens import folders, hub
from anchorlens.folders import IncompleteModelError, MissingModelError, ModelError
from anchorlens.hub import PATIENCE, hub_reachable

__all__ = [
    "PATIENCE",
    "TOYS",
    "Checkpoint",
    "IncompleteModelError",
    "MissingModelError",
    "ModelError",
    "hub_reachable",
    "locate",
    "may_be_hub_id",
    "resolve_backend",
    "resolve_device",
    "resolve_dtype",
]

TOY_FOLDER = Path(__file__).parent / "toy" / "models"
TOY_SEED = 0  # of toy-random's weights
TOYS = ("toy", "toy-random", "toy-unanchored")
DTYPES = ("float32", "float64", "bfloat16", "float16")
BACKENDS = ("auto", "hooked", "bridge")

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_OF_A_MODEL = {".json", ".txt", ".model", ".safetensors", ".bin", ".py", ".tiktoken"}
_SMALL = 256 * 2**20  # bytes up to which weights are hashed whole


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


def locate(name: str, revision: str = "", *, fetch: bool = True, remote_code: bool = False) -> Checkpoint:
    """Find the files of model ``name``: a shipped toy, a Hugging Face folder, or a hub id (fetched when ``fetch``).

    Raises:
        ModelError: for a folder that is not a model's, a model that is no decoder or, unless ``remote_code``, brings
            code of its own, or a name that is none.
        MissingModelError: for a hub id that is not in the cache while the hub cannot be reached, or does not have it.
    """
    if not name.strip():
        raise ModelError(f"model {name!r}: give a Hugging Face folder, a hub id like gpt2-xl, or {', '.join(TOYS)}.")
    try:
        folder = Path(name).expanduser()
        folder.exists()
    except RuntimeError as error:  # a home of nobody
        raise MissingModelError(f"model {name!r}: {error}") from error
    except OSError as error:  # too long
        raise ModelError(f"model {name[:80]!r} can be no path ({error}). Give a folder, or a hub id.") from error
    if revision and (name in TOYS or folder.is_dir()):
        raise ModelError(f"revision={revision!r}: model {name!r} is not from the hub and has none; leave it empty.")
    if name in TOYS:
        if name == "toy-random":
            return Checkpoint(name, TOY_FOLDER / "toy", random_seed=TOY_SEED)
        return Checkpoint(name, TOY_FOLDER / name)
    if folder.is_dir():
        folders.check(name, folder, remote_code=remote_code)
        return Checkpoint(name, folder)
    if folder.exists() or not may_be_hub_id(name):
        if name.endswith(".gguf"):
            raise ModelError(f"model {name!r} {folders.GGUF}")
        found, kind = ("a file", ModelError) if folder.exists() else ("nothing there", MissingModelError)
        raise kind(
            f"model {name!r}: expected a folder with config.json, weights and tokenizer, found {found}. "
            f"Give such a folder, a hub id like gpt2-xl, or one of {', '.join(TOYS)}."
        )
    found = hub.find(name, revision, fetch=fetch, remote_code=remote_code)
    return Checkpoint(name, found, revision=found.name)


def may_be_hub_id(name: str) -> bool:
    """Whether ``name`` could be that of a model on the hub, if there is no such folder."""
    return not name.startswith((".", "/", "~")) and _HUB_ID.fullmatch(name) is not None


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
    """Hash of config, tokenizer, code and weights; of large weights, size, time and 64 evenly spread blocks."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in _OF_A_MODEL or not path.is_file():
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

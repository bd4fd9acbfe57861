"""Small models and prompts that every test can use; nothing is downloaded or trained."""

import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: on small models, on a busy machine, more threads are slower
if not os.environ.get("ANCHORLENS_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests hold what a CPU gives; test_gpu holds a GPU to that

import pytest
import torch

from anchorlens import preflight, warm
from anchorlens.batching import Batch, collate
from anchorlens.drafts import Draft
from anchorlens.hooks import Edit, Inject, Isolate, Scale
from anchorlens.prompts import Encoder, Prompt
from anchorlens.rows import Example
from anchorlens.tasks import SST2

FIXTURES = Path(__file__).parent / "fixtures"
# Files of few tests that take minutes, mostly in processes of their own: begun first, so that none is left for the end.
LONG = (
    *("streaming", "cluster", "sweep_faults", "sweep_disk", "warm"),
    *("notebooks", "jupyterlab", "reproduce", "browser", "sweep", "store_kills", "toy_analyses"),
)
BACKENDS = preflight.resolve_backend("auto")  # of the transformer-lens that is installed


def pytest_configure() -> None:
    """Ctrl-C reaches what the tests start, also where they were started with ``&`` or nohup, which ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, since much of the time is spent waiting for kernels, sweeps and their ends."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}": n for n, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
    if not os.environ.get("ANCHORLENS_SLOW"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; make test-slow"))


@pytest.fixture(scope="session")
def tokenizer():
    """GPT-2's tokenizer, cut down to the merges of the fixtures' texts."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FIXTURES / "gpt2-tiny", local_files_only=True)


def random_model(dtype: torch.dtype = torch.float64, **changes):
    """A random 3-layer HookedTransformer (2 heads, width 16, the fixtures' vocabulary) as a ``Lens``."""
    if "hooked" not in BACKENDS:
        pytest.skip("this transformer-lens has no HookedTransformer; the families' tests stand for the bridge")
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    from anchorlens.models import Hooked, Kind
    from anchorlens.preflight import Checkpoint

    shape = {"n_layers": 3, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 32, "n_ctx": 96, "d_vocab": 1487}
    cfg = HookedTransformerConfig(
        **{**shape, "act_fn": "gelu", "normalization_type": "LN", "seed": 0, "dtype": dtype, "device": "cpu", **changes}
    )
    model = HookedTransformer(cfg)
    chance = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=chance, dtype=dtype) * 0.4)
    kind = Kind("random", cfg.positional_embedding_type, cfg.window_size if cfg.use_local_attn else None)
    return Hooked(model.eval(), None, Checkpoint("random", Path()), kind)


@pytest.fixture(scope="session")
def model():
    """A random model in float64, weights frozen."""
    return random_model()


@pytest.fixture(scope="session")
def prompts(tokenizer) -> list[Prompt]:
    """Two prompts of different length about the same two demonstrations."""
    demonstrations = (Example("a joy from start to end", 1), Example("a slow drama", 0))
    encode = Encoder(tokenizer, 96)
    return [
        encode(Draft(SST2, demonstrations, Example(text, label, row)))
        for row, (text, label) in enumerate([("i laughed", 1), ("nothing to say, slow and dull", 0)])
    ]


@pytest.fixture
def batch(prompts) -> Batch:
    """Both prompts in one padded batch."""
    return collate(prompts)


@pytest.fixture(scope="module")
def warm_kernel():
    """One kernel for all runs of a module; test_warm holds them to what runs in kernels of their own give."""
    with warm.kernel() as kernel:
        yield kernel


def some_beta() -> torch.Tensor:
    """Log-factors [layer head demo] for the random model, no two alike."""
    return torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 2, 2)


@pytest.fixture
def each_edit(request, batch) -> Edit:
    """One edit of each kind, made for ``batch``."""
    return {
        "isolate": lambda: Isolate(batch.anchors),
        "scale": lambda: Scale(batch.target, batch.anchors, some_beta()),
        "inject": lambda: Inject(torch.ones(3, 4, 16, dtype=torch.float64)),
    }[request.param]()


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """The folder of a random model, by the name of its family (``families.FAMILIES``)."""
    from families import FAMILIES, built

    made = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = built(FAMILIES[family], tmp_path_factory.mktemp(family))
        return str(made[family])

    return folder


@pytest.fixture(scope="session")
def family_group(tokenizer):
    """Eight ragged queries behind two demonstrations, of which the first is beyond every window."""
    from compression_helpers import DRAFTS, encoded
    from families import WINDOW

    from anchorlens.batching import groups

    (one,) = groups(encoded(tokenizer, DRAFTS[:8]))
    assert one.length > WINDOW
    return one


@pytest.fixture(scope="session")
def family_case(family_folder, family_group):
    """A family on a backend, with its plain run; each is loaded once."""
    from families import Case, Plain

    from anchorlens import models

    made = {}

    def case(family: str, backend: str) -> Case:
        if (family, backend) not in made:
            lens = models.load(family_folder(family), backend=backend, dtype="float64")
            limit = 1e-12 if lens.kind.positions == "standard" else 1e-5
            made[family, backend] = Case(family, lens, Plain(family_folder(family)), family_group, limit)
        return made[family, backend]

    return case


@pytest.fixture(scope="module")
def chromium():
    """The system's browser; tests that ask for it are skipped where there is none."""
    from browser_helpers import chromium

    with chromium() as started:
        yield started


@pytest.fixture
def watched(chromium):
    """A page of the browser, on which nothing may go wrong."""
    from browser_helpers import watched

    with watched(chromium) as page:
        yield page
        assert page.faults == []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A place for a store."""
    return tmp_path / "store"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A place for its report."""
    return tmp_path / "report"

"""What only a GPU can show: ``make test-gpu``. Elsewhere a CPU is the oracle, and GPUs are hidden from the tests."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from analyses_helpers import everything
from benchmarks import memory
from compression_helpers import QUERIES, SHOWN, encoded
from conftest import BACKENDS, random_model
from families import RUN, refused
from sweep_helpers import count
from test_cluster import needs_ray
from test_warm import leave, notebook, run

from anchorlens import drafts, fitting, models, parameters, preflight, readings, room, store, tasks, warm
from anchorlens.analyses import extraction
from anchorlens.batching import groups
from anchorlens.drafts import Draft
from anchorlens.prompts import Encoder
from anchorlens.rows import Example
from anchorlens.tasks import SST2

pytestmark = pytest.mark.skipif(not os.environ.get("ANCHORLENS_GPU"), reason="GPUs are not asked for: make test-gpu")
MIB, GIB = 2**20, 2**30


@pytest.fixture(autouse=True)
def tidy():
    """There is a GPU, and what a test has left there is not kept from the kernels of the next."""
    assert torch.cuda.is_available(), f"torch {torch.__version__} finds no CUDA GPU: see nvidia-smi, and torch's build"
    yield
    gc.collect()
    torch.cuda.empty_cache()


def near(found: pd.DataFrame, want: pd.DataFrame, limit: float, what: str) -> None:
    """Numbers differ by ``limit`` of the largest in their column at most, all else by nothing."""
    assert list(found.columns) == list(want.columns)
    for name in want:
        one, other = found[name].to_numpy(), want[name].to_numpy()
        assert other.dtype.kind != "f" or not np.isinf(other).any(), (what, name)
        if one.dtype.kind == "f":
            np.testing.assert_allclose(
                one, other, rtol=0, atol=limit * np.nanmax(np.abs(other)), err_msg=f"{what} {name}"
            )
        else:
            assert one.tolist() == other.tolist(), (what, name)


@pytest.mark.parametrize(("family", "backend"), RUN)
def test_every_analysis_gives_what_it_gives_on_a_cpu(family_folder, tokenizer, family, backend):
    """Rounding of float64 or, where rotation or norms are float32 (as in test_families), of that.

    Of learned factors a hundred times that: Adam divides each gradient by its size, also one that is nearly 0.
    """
    frames = {}
    for device in ("cpu", "cuda"):
        lens = models.load(family_folder(family), backend=backend, dtype="float64", device=device)
        assert lens.devices[0].startswith(device)
        frames[device] = everything(lens, tokenizer, compressed=not refused(family, backend, "compression"))
    limit = 1e-10 if lens.kind.positions == "standard" else 1e-4
    for what, want in frames["cpu"].items():
        near(frames["cuda"][what], want, limit * (100 if what == "beta" else 1), what)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_toy_answers_in_each_dtype_as_on_a_cpu_in_float32(dtype):
    answers, auc = {}, {}
    for device, kind in (("cpu", "float32"), ("cuda", dtype)):
        toy = models.load("toy", device=device, dtype=kind)
        drawn = drafts.load(tasks.get("emo"), toy=True, fresh=False, seeds=[42])
        (group,) = groups(Encoder(toy.tokenizer, toy.cfg.n_ctx).all(drawn)[0])
        reading = readings.read(toy, group)
        answers[device] = reading.answers.label_logits.argmax(-1)
        auc[device] = extraction.summary(extraction.extraction(reading))["auc"]
    kept = (answers["cpu"] == answers["cuda"]).double().mean().item()
    assert kept >= (1 if dtype == "float32" else 0.98)  # docs/dtypes.md: 1 in 200 differs in bfloat16
    np.testing.assert_allclose(auc["cuda"], auc["cpu"], atol=1e-3 if dtype == "float32" else 0.03)


@pytest.fixture
def scarce():
    """Sets how many bytes this process may have on the GPU."""
    yield lambda most: torch.cuda.set_per_process_memory_fraction(most / torch.cuda.mem_get_info()[1])
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_what_a_gpu_has_no_room_for_is_run_in_halves_with_the_same_result(tokenizer, scarce, monkeypatch):
    lens = random_model(torch.float32, d_vocab=1487, n_heads=32, d_head=16, d_model=512, d_mlp=2048, device="cuda")
    queries = [Example(query.text, query.label, n) for n, query in enumerate(QUERIES * 64)]
    (group,) = groups(encoded(tokenizer, [Draft(SST2, SHOWN, query) for query in queries]))

    def read() -> pd.DataFrame:
        return extraction.extraction(readings.read(lens, group, batch_tokens=10**9))

    read()  # cuBLAS takes its workspace
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    want, most = read(), torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    let_go, original = [], fitting._release
    monkeypatch.setattr(fitting, "_release", lambda: (let_go.append(True), original()))
    scarce(torch.cuda.memory_reserved() + (most - before) // 3)
    found = read()
    assert let_go, "it did fit"
    near(found, want, 1e-4, "in halves")  # float32 is 8e-6 from float64 here, in one order of adding up or another


@pytest.mark.parametrize("what", memory.ANALYSES)
def test_peaks_of_memory_are_what_batches_are_sized_by(what):
    if "hooked" not in BACKENDS:
        pytest.skip("the benchmark's models are HookedTransformers")
    found = memory.measured(memory.SETUPS["12 x 768, GPT-2 small"], what, "cuda", "float32")
    assert found["expected"] / found["measured"] == pytest.approx(1, abs=memory.ALLOWED)


def test_devices_and_free_memory_are_told_without_torch_as_with_it():
    code = (
        "import sys; from anchorlens import preflight, room; "
        "print(preflight.cuda_devices(), room.free_bytes('cuda'), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert (said[0], said[2]) == (str(torch.cuda.device_count()), "False")
    assert abs(int(said[1]) - torch.cuda.mem_get_info()[0]) < GIB, "the context of a process takes half of that"
    assert preflight.resolve_device("auto") == "cuda"
    torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    assert kept >= 256 * MIB
    assert room.free_bytes("cuda") == pytest.approx(torch.cuda.mem_get_info()[0] + kept, abs=128 * MIB)


LOOK = """\
import torch
from pathlib import Path
import pandas as pd
from anchorlens import models
lens = models.load("toy-random")
held = torch.cuda.memory_reserved()
drawn = torch.rand(3, device="cuda").tolist()
answer = lens(torch.arange(20)[None])[0, -1, :3].tolist()
seen = {"large": held > 2**29, "drawn": drawn, "answer": answer, "device": lens.devices}
pd.DataFrame({"name": list(seen), "value": list(map(repr, seen.values()))}).to_parquet(Path(folder) / "results.parquet")
"""


def test_a_warm_kernel_is_kept_and_leaves_neither_memory_nor_state_on_the_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    look = notebook(tmp_path, LOOK, "look")
    with warm.kernel() as kernel:
        first = store.read(run(kernel, look).folder)
        large = f"import torch\nlarge = torch.ones(2**28, device='cuda')\ntorch.cuda.manual_seed(5)\n{LOOK}"
        run(kernel, notebook(tmp_path, large, "large"))
        leave(kernel, tmp_path, "import torch\ntorch.manual_seed(5)")
        again = store.read(run(kernel, look).folder)
        assert kernel.given_up == []
        assert kernel.starts == 1
    pd.testing.assert_frame_equal(first, again)
    assert dict(zip(first["name"], first["value"], strict=True))["large"] == "False"


GIVEN = {"model": "toy", "task": "emo", "limit": 30, "batch_tokens": 4096}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Every notebook of the paper on the toy, swept by two workers who share the GPU."""
    return sweep(tmp_path_factory.mktemp("two"), "--workers", "2")


def sweep(folder: Path, *more: str) -> dict[str, pd.DataFrame]:
    """Tables of results, by their run."""
    grid = folder / "grid.yaml"
    names = [name for name in parameters.notebooks() if name[0].isdigit() and name[0] != "0"]
    grid.write_text(json.dumps({**GIVEN, "notebooks": names}))
    words = [sys.executable, "-m", "anchorlens.cli", "sweep", str(grid), "--store", str(folder / "store"), "--json"]
    one = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "CUDA_VISIBLE_DEVICES": one}
    done = subprocess.run([*words, *more], capture_output=True, text=True, env=env, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (count(events, "done"), count(events, "retried")) == (len(names), 0), events
    paths = sorted((folder / "store").glob("*/*/results.parquet"))
    for path in paths:
        told = store.manifest(path.parent)
        assert told["device"].startswith("cuda"), told["device"]
        assert told["kernel"] == "warm"
    return {path.parent.name: pd.read_parquet(path) for path in paths}


@needs_ray
def test_a_sweep_by_ray_takes_the_gpu_and_gives_the_same_tables(swept, tmp_path):
    found = sweep(tmp_path, "--engine", "ray")
    assert found.keys() == swept.keys()
    for key, want in swept.items():  # an actor has more of the CPU's threads, which add up in another order
        near(found[key], want, 1e-5, key)


def test_runs_in_a_sweep_are_those_of_a_kernel_of_their_own_on_the_gpu(swept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("2_1_information_flow", "3_1_reweighting"):
        alone = run(None, name, GIVEN)
        pd.testing.assert_frame_equal(store.read(alone.folder), swept[alone.folder.name], check_exact=True)

"""A kernel that is kept gives each run what a kernel of its own would give it, or is not kept."""

import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import types
from pathlib import Path

import papermill
import psutil
import pytest
import torch
from analyses_helpers import everything
from conftest import random_model
from nbclient.exceptions import CellTimeoutError
from papermill.engines import papermill_engines
from test_spreading import bridged

from anchorlens import batch, figures, models, parameters, store, warm
from anchorlens.preflight import Checkpoint
from anchorlens.warm import engine, inside, resident, settings, traces

LOOK = """\
import gc, logging, os, random, signal, sys, threading, warnings
from pathlib import Path
import numpy as np, pandas as pd, plotly.io, torch
from anchorlens import models, tasks
lens = models.load("toy")
seen = {
    "names": sorted(name for name in globals() if not name.startswith("_")),
    "torch": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), torch.zeros(1).device),
    "chance": (torch.rand(1).item(), torch.initial_seed()),
    "options": (pd.options.display.max_rows, plotly.io.templates.default, np.get_printoptions()["precision"]),
    "python": (len(warnings.filters), os.getcwd(), sorted(os.environ), sys.path, logging.getLogger("torch").level),
    "alarm": signal.getsignal(signal.SIGALRM),
    "tasks": sorted(tasks.TASKS),
    "helper": "helper" in sys.modules,
    "answer": lens(torch.arange(20)[None])[0, -1, :5].tolist(),
    "vocabulary": len(lens.tokenizer),
}
pd.DataFrame({"name": list(seen), "value": list(map(repr, seen.values()))}).to_parquet(Path(folder) / "results.parquet")
"""
SET = {
    "names": "leftover, lens = 1, 2",
    "an error": "import torch\ntorch.set_grad_enabled(False)\nraise ZeroDivisionError",
    "gradients and types": "import torch\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)",
    "device and threads": "import torch\ntorch.set_default_device('meta')\ntorch.set_num_threads(2)",
    "chance": "import torch\ntorch.manual_seed(5)\ntorch.rand(3)",
    "options": "import pandas as pd, numpy as np, plotly.io\npd.options.display.max_rows = 3\n"
    "np.set_printoptions(precision=2)\nplotly.io.templates.default = 'plotly_dark'",
    "python": "import os, sys, warnings, logging, signal\nos.chdir('/')\nos.environ['A_LEFTOVER'] = '1'\n"
    "sys.path.insert(0, '/nowhere')\nwarnings.simplefilter('error')\nlogging.getLogger('torch').setLevel(10)\n"
    "signal.signal(signal.SIGALRM, print)",
    "a hook": "from anchorlens import models\nlens = models.load('toy')\n"
    "lens.model.blocks[0].attn.hook_pattern.add_hook(lambda act, hook: act * 0)",
    "weights": "from anchorlens import models\nlens = models.load('toy')\nlens.model.W_E.mul_(2)",
    "a tokenizer": "from anchorlens import models\nmodels.load('toy').tokenizer.add_tokens(['anchor'])",
    "a module of its own": "from pathlib import Path\nPath('helper.py').write_text('x = 1')\nimport sys\n"
    "sys.path.insert(0, '.')\nimport helper",
}  # what a run may leave, and what the kernel undoes
BROKEN = {
    "a function of torch": ("import torch\ntorch.softmax = lambda *a, **k: None", "torch.softmax was replaced"),
    "a task": ("from anchorlens import tasks\ntasks.TASKS['mine'] = 1", "anchorlens.tasks.TASKS was replaced"),
    "a thread": ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", "goes on"),
}  # what cannot be undone: the kernel is given up


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)  # changes between tests, and a kernel has one environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working folder of all runs, which a kernel keeps as little as any other setting."""
    here, before = tmp_path_factory.mktemp("warm"), Path.cwd()
    os.chdir(here)
    yield here
    os.chdir(before)


@pytest.fixture(scope="module")
def kernel(folder):
    with warm.kernel() as kernel:
        yield kernel


def notebook(folder: Path, code: str, name: str = "small") -> str:
    """A notebook with the parameters of the tour and one cell of ``code``."""
    tour = json.loads(parameters.find("0_tour").read_text(encoding="utf-8"))
    declaration = next(cell for cell in tour["cells"] if cell["metadata"].get("tags") == ["parameters"])
    cell = {**declaration, "metadata": {}, "source": code, "id": "code"}
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps({**tour, "cells": [declaration, cell]}))
    return str(path)


def run(kernel, name: str, given: dict | None = None) -> batch.Result:
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    try:
        return batch.run(name, given or {}, root=Path("outputs"), force=True, bar=False, kernel=kernel)
    finally:
        os.environ["PYTEST_CURRENT_TEST"] = "warm"  # pytest takes it away at the end


def leave(kernel, folder: Path, code: str) -> None:
    """A run of ``code``, which stores no results."""
    with pytest.raises(batch.RunError, match=r"stored no results|ZeroDivisionError"):
        run(kernel, notebook(folder, code))


def look(kernel, folder: Path) -> dict[str, str]:
    """What a run finds."""
    frame = store.read(run(kernel, notebook(folder, LOOK, "look")).folder)
    return dict(zip(frame["name"], frame["value"], strict=True))


@pytest.fixture(scope="module")
def untouched(kernel, folder) -> dict[str, str]:
    """What the first run of a kernel finds."""
    return look(kernel, folder)


@pytest.mark.parametrize("what", SET)
def test_a_run_finds_nothing_that_an_earlier_one_set(kernel, folder, untouched, what):
    starts = kernel.starts
    leave(kernel, folder, SET[what])
    assert look(kernel, folder) == untouched
    assert kernel.starts == starts, f"it was not kept: {kernel.given_up}"


def test_a_kernel_that_cannot_be_set_back_is_given_up_and_says_all_that_is_why(kernel, folder, untouched):
    leave(kernel, folder, "\n".join(code for code, _ in BROKEN.values()))
    assert kernel.pid is None
    assert [why for _, why in BROKEN.values() if why not in kernel.given_up[-1]] == []
    found = look(kernel, folder)
    assert {**found, "chance": ""} == {**untouched, "chance": ""}  # another process, so another seed


def test_tables_and_notebooks_are_those_of_a_kernel_of_their_own(kernel, folder):
    given = {"limit": 20, "batch_tokens": 4096}
    results, given_up = [], len(kernel.given_up)
    for each in (None, kernel, kernel):
        done = run(each, "2_3_extraction", given)
        tables = {path.name: path.read_bytes() for path in done.folder.glob("*.parquet")}
        executed = (done.folder / "run.ipynb").read_text()
        assert "UserWarning" not in executed, "one browser for all figures is no news to a reader"
        cells = json.loads(executed)["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        shown = [(c["execution_count"], [sorted(o.get("data", ())) for o in c["outputs"] if "data" in o]) for c in code]
        results.append((tables, shown))
        assert store.manifest(done.folder)["kernel"] == ("cold" if each is None else "warm")
    assert {"results.parquet", "summary.parquet"} <= set(results[0][0])
    assert results[0] == results[1] == results[2]
    assert kernel.given_up[given_up:] == [], "figures are drawn by a browser that stays"


def test_a_run_is_stored_while_the_kernel_removes_its_traces(kernel, folder, untouched, monkeypatch):
    asked, stored = [], []

    def slowly(running, answer):
        def left():
            asked.append(len(stored))
            return original(running, answer)()

        return left

    original = engine._left
    monkeypatch.setattr(engine, "_left", slowly)
    run(kernel, notebook(folder, LOOK, "look"))
    stored.append(True)
    assert asked == [], "nothing has waited"
    assert kernel.given_up is not None
    assert asked == [1]
    assert kernel.given_up is not None
    assert asked == [1], "once"


def test_a_kernel_of_which_nobody_could_wait_what_stays_is_not_used_again():
    kernel = warm.Kernel()

    def interrupted():
        raise KeyboardInterrupt

    kernel.ended(interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernel.close()
    assert kernel.given_up == ["KeyboardInterrupt: "]


def test_a_fork_does_not_ask_its_owners_kernel(monkeypatch):
    kernel = warm.Kernel()
    kernel.ended(lambda: pytest.fail("asked"))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    kernel.close()


@pytest.mark.parametrize("kept", [False, True], ids=["cold", "warm"])
def test_the_notebook_is_written_when_a_code_cell_begins_and_at_the_end(kernel, folder, monkeypatch, kept):
    from papermill import engines

    written, write = [], engines.write_ipynb

    def noted(nb, path):
        written.append([cell["metadata"]["papermill"]["status"] for cell in nb.cells])
        write(nb, path)

    monkeypatch.setattr(engines, "write_ipynb", noted)
    path = Path(notebook(folder, LOOK, "look"))
    plain = json.loads(path.read_text())
    declaration, code = plain["cells"]
    text = {"cell_type": "markdown", "metadata": {}, "source": "text", "id": "text"}
    path.write_text(json.dumps({**plain, "cells": [declaration, text, {**code, "source": "x = 1", "id": "x"}, code]}))
    run(kernel if kept else None, str(path))
    pending, running, done = "pending", "running", "completed"
    n = len(written[-1])
    began = [[done] * at + [running] + [pending] * (n - at - 1) for at in range(n)]
    code_cells = [at for at in range(n) if at != 2]  # declaration, what papermill injects, text, code, code
    assert [each for each in written if running in each] == [began[at] for at in code_cells]
    assert written[-1] == [done] * n
    assert len(written) <= len(code_cells) + 3, "and not twice for each cell"


def test_a_dead_kernel_is_the_error_of_that_run_alone(kernel, folder, untouched):
    with pytest.raises(batch.RunError, match="DeadKernelError"):
        run(kernel, notebook(folder, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"))
    assert kernel.pid is None
    assert look(kernel, folder).keys() == untouched.keys()


def test_a_kernel_that_runs_out_of_time_is_ended(kernel, folder, untouched):
    look(kernel, folder)
    process = psutil.Process(kernel.pid)
    family = [process, *process.children(recursive=True)]
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    sleeping = notebook(folder, "import time\ntime.sleep(60)")
    with pytest.raises(CellTimeoutError):
        papermill.execute_notebook(
            sleeping, "out.ipynb", kernel_name="python3", progress_bar=False, execution_timeout=1,
            **{**kernel.options("x"), "code": kernel._made_for[1]}, config=kernel._manager.config,
        )  # fmt: skip
    os.environ["PYTEST_CURRENT_TEST"] = "warm"
    assert [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_no_process_outlives_the_one_that_runs_notebooks(folder, how):
    said = folder / f"pids-{how}"
    sleeping = notebook(folder, f"import time, os\nopen({str(said)!r}, 'w').write('x')\ntime.sleep(60)", f"sleep{how}")
    code = f"from anchorlens import batch, warm\nwith warm.kernel() as k: batch.run({sleeping!r}, {{}}, kernel=k)"
    runner = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, cwd=folder)
    family: list[psutil.Process] = []
    try:
        wait_for(said.exists, 120)
        family = psutil.Process(runner.pid).children(recursive=True)
        assert family
        runner.send_signal(how)
        runner.wait(30)
        wait_for(lambda: not any(alive(each) for each in family), 20)
    finally:
        for each in filter(alive, family):
            each.kill()
        runner.kill()
        runner.wait()


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.2)


def test_papermill_finds_the_engine_by_the_name_that_is_declared():
    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    (entry,) = declared["project"]["entry-points"]["papermill.engine"].items()
    assert entry == (warm.ENGINE, f"{engine.WarmEngine.__module__}:{engine.WarmEngine.__qualname__}")
    engine.register()
    assert papermill_engines.get_engine(warm.ENGINE) is engine.WarmEngine


@pytest.fixture
def residents(monkeypatch):
    """Residents over a loader that counts; every folder is a model."""
    loaded = []

    def load(name, *, backend="auto", revision="", remote_code=False, device="auto", dtype="auto", random_seed=None):
        loaded.append(name)
        lens = random_model()
        lens.checkpoint = Checkpoint(name, Path())
        return lens

    monkeypatch.setattr(resident.preflight, "locate", lambda name, revision, **asked: Checkpoint(name, Path()))
    monkeypatch.setattr(Checkpoint, "fingerprint", lambda self: self.name)
    held = resident.Residents(load)
    return held, loaded


def test_a_model_is_loaded_once_and_handed_out_once_a_run(residents):
    held, loaded = residents
    first = held.load("one")
    assert held.load("one").model is not first.model, "in one run, a second is a second"
    held.settle()
    again = held.load("one")
    assert loaded == ["one", "one"]
    assert again is not first
    held.load("one", dtype="float64")
    held.load("one", random_seed=1)
    assert len(loaded) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lens: lens.model.W_E.mul_(-1), "weights"),
        (lambda lens: lens.model.W_E.requires_grad_(), "weights"),
        (lambda lens: lens.model.blocks[0].hook_resid_pre.add_hook(print), "hooks"),
        (lambda lens: lens.model.register_forward_hook(print), "hooks"),
        (lambda lens: lens.model.train(), "modules"),
        (lambda lens: setattr(lens.model.blocks[0], "forward", print), "modules"),
        (lambda lens: setattr(lens.model.blocks[0].mlp, "act_fn", torch.tanh), "modules"),
        (lambda lens: setattr(lens.cfg, "eps", 0.5), "settings"),
        (lambda lens: setattr(lens.model.blocks[0].attn, "cfg", copy.copy(lens.cfg)), "settings"),
    ],
    ids=["weights", "gradients", "hook point", "torch hook", "training", "method", "function", "setting", "settings"],
)
def test_a_model_that_was_changed_is_forgotten(residents, change, said):
    held, loaded = residents
    lens = held.load("one")
    with torch.no_grad():
        change(lens)
    assert said in held.settle()[0]
    held.load("one")
    assert loaded == ["one", "one"]


def test_a_run_of_a_model_changes_nothing_that_is_looked_at(residents, batch):
    held, _ = residents
    lens = held.load("one")
    with torch.no_grad():
        lens.all_logits(lens.at_target(batch.tokens, batch.target))
        lens.remember(batch.tokens, torch.ones_like(batch.tokens))
    assert held.settle() == []


def test_a_bridged_model_is_looked_at_as_well(tokenizer):
    lens = bridged("gpt2", ["cpu"], tokenizer)
    before = resident.state(lens)
    everything(lens, tokenizer)
    assert resident.state(lens) == before
    lens.model.blocks[1].attn.hook_pattern.add_hook(lambda act, hook: act * 0)
    assert resident.state(lens)["hooks"] != before["hooks"]
    lens.model.original_model.lm_head.weight.mul_(2)
    assert resident.state(lens)["weights"] != before["weights"]


@pytest.mark.skipif(not figures.has_browser(), reason="no Chromium or Chrome to draw with")
def test_a_kernel_of_its_own_leaves_no_folder_of_its_browser(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tempfile.TemporaryDirectory()  # of a short name: the browser's socket takes 108 characters
    monkeypatch.setenv("TMPDIR", place.name)
    draws = """
import tempfile
from pathlib import Path
import pandas as pd
from anchorlens.figures import painting
painting.draw({"data": [], "layout": {}})
there = [path.name for path in Path(tempfile.gettempdir()).iterdir()]
pd.DataFrame({"there": there}).to_parquet(Path(folder) / "results.parquet")
"""
    there = set(store.read(run(None, notebook(tmp_path, draws)).folder)["there"])
    assert {name for name in there if name.startswith("tmp")}, "where the browser keeps its own"
    assert not list(Path(place.name).glob("tmp*"))
    place.cleanup()


def test_a_process_that_is_gone_before_it_is_killed_is_no_error(monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(psutil.Process, "is_running", lambda self: True)
    monkeypatch.setattr(psutil.Process, "kill", lambda self: (_ for _ in ()).throw(psutil.NoSuchProcess(self.pid)))
    monkeypatch.setattr("jupyter_core.utils.run_sync", lambda ending: lambda now: child.kill() or child.wait())
    ended = []
    manager = types.SimpleNamespace(
        provisioner=types.SimpleNamespace(pid=child.pid),
        shutdown_kernel=None,
        cleanup_connection_file=lambda: ended.append(True),
    )
    warm._end(manager, os.getpid(), at_once=True)
    assert ended


def test_of_large_models_one_is_kept_and_of_small_ones_a_few(residents, monkeypatch):
    held, loaded = residents
    for name in "abcdef":
        held.load(name)
    assert len(held) == resident.MOST
    held.settle()
    held.load("f")
    assert loaded == list("abcdef")
    monkeypatch.setattr(resident, "SMALL", 0)
    held.load("g")
    assert len(held) == 1


def test_what_was_replaced_in_a_module_is_seen(monkeypatch):
    from anchorlens import metrics, tasks

    picture = traces.Picture()
    notebook = {"__name__": "__main__"}
    exec("def mine(): pass", notebook)
    assert picture.replaced(notebook) == []
    for holder, name, value in [
        (torch, "relu", torch.sigmoid),
        (torch.nn.Linear, "forward", notebook["mine"]),
        (metrics, "accuracy_of_mine", notebook["mine"]),
        (tasks, "SST2", None),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, value, raising=False)
            (said, *_) = picture.replaced(notebook)
            assert f".{name} " in said
    with monkeypatch.context() as patch:
        patch.setitem(tasks.TASKS, "mine", tasks.SST2)
        said = picture.replaced(notebook)  # one table, under the names of all modules that have it
        assert {f"anchorlens.{module}.TASKS was replaced" for module in ("rows", "tasks")} <= set(said)
        assert all(each.endswith(".TASKS was replaced") for each in said)
    assert picture.replaced(notebook) == []


def test_the_seed_that_a_run_leaves_for_a_gpu_is_not_the_next_ones(monkeypatch):
    was, queued = settings.chance(), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", queued.append)  # both seeds wait until a GPU is used
    models.load("toy-random")
    assert queued == [], "loading leaves the generators of GPUs alone"
    torch.manual_seed(5)
    settings.put_chance(was)
    assert queued == [5, torch.initial_seed()]
    assert torch.initial_seed() != 5


def test_packages_of_another_environment_are_installed_and_a_notebooks_own_modules_are_not(tmp_path, monkeypatch):
    other = tmp_path / "lib" / "site-packages"
    monkeypatch.syspath_prepend(str(other))
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    inside._places.cache_clear()
    try:
        for path, want in ((other / "pandas" / "a.py", True), (tmp_path / "mine" / "helper.py", False)):
            module = types.ModuleType("a")
            module.__file__ = str(path)
            assert inside._installed(module) == want
    finally:
        inside._places.cache_clear()

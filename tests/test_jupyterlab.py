"""Notebooks open in JupyterLab, in a real browser, and run through there as they are, on the toy with few queries.

``ANCHORLENS_LAB=all`` takes every notebook (``make test-lab``), otherwise the tour (``make test-slow``). It needs
Chromium or Chrome.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from anchorlens import parameters, store

pytestmark = pytest.mark.slow

FEW = "limit: int = 8"
NOTEBOOKS = list(parameters.notebooks()) if os.environ.get("ANCHORLENS_LAB") == "all" else ["0_tour"]
PATIENCE = 300  # seconds
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, seen or not
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
DONE = """() => {
    const counts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(each => each.innerText);
    const idle = document.querySelector('.jp-Notebook-ExecutionIndicator').dataset.status === 'idle';
    return idle && /\\d/.test(counts[0]) && !counts.some(each => each.includes('*'));
}"""


def copied(notebook: Path, folder: Path) -> Path:
    """A copy with few queries, as a user would change its cell of parameters."""
    held = json.loads(notebook.read_text(encoding="utf-8"))
    (cell,) = [cell for cell in held["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    source = "".join(cell["source"])
    changed, n = re.subn(r"^limit: int = \d+", FEW, source, flags=re.MULTILINE)
    assert n == 1
    cell["source"] = changed
    copy = folder / notebook.name
    copy.write_text(json.dumps(held), encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory) -> Iterator[tuple[dict[str, Any], Path]]:
    """A running JupyterLab: its address and token, and its folder. It keeps its files there, and leaves no process."""
    folder = tmp_path_factory.mktemp("lab")
    notebooks, settings = folder / "notebooks", folder / "settings"
    notebooks.mkdir()
    for name, value in SETTINGS.items():
        path = settings / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    own = {f"JUPYTER_{what}_DIR": str(folder / what.lower()) for what in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    given = ["--no-browser", "--allow-root", "--ip=localhost", "--port=0", f"--ServerApp.root_dir={notebooks}"]
    given += ["--LabApp.news_url=", "--LabApp.extension_manager=readonly"]  # which ask the network
    log = folder / "log"
    with log.open("w") as said:
        command = [sys.executable, "-m", "jupyterlab", *given]
        server = subprocess.Popen(command, env={**os.environ, **own}, stdout=said, stderr=said, cwd=folder)
    children: list[psutil.Process] = []
    try:
        yield started(server, folder / "runtime", log), notebooks
        children = psutil.Process(server.pid).children(recursive=True)
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            raise
        _, left = psutil.wait_procs(children, timeout=10)
        for each in left:
            each.kill()
    assert left == []


def started(server: subprocess.Popen, runtime: Path, log: Path) -> dict[str, Any]:
    """What a server says of itself in its file, once it is there."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            held = path.read_text()
            if held.endswith("}"):
                return json.loads(held)
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_opens_in_jupyterlab_and_runs_all_its_cells(lab, watched, name):
    server, folder = lab
    copy = copied(parameters.notebooks()[name], folder)
    page = watched.page
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(f"{server['url']}lab/tree/{copy.name}?reset&token={server['token']}")
    page.get_by_text(re.compile(r"ipykernel\) \| Idle")).wait_for()  # before there is a kernel, it would be asked for
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(DONE, polling=500)
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.get_by_role("menuitem", name=re.compile(r"^Save Notebook(?! As)")).click()
    code = saved(page, copy)
    left = [output for cell in code for output in cell["outputs"]]
    assert [output["evalue"] for output in left if output["output_type"] == "error"] == []
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    drawn = page.locator(".jp-OutputArea .js-plotly-plot .main-svg")
    assert drawn.count() > 0
    cut = """plots => plots.filter(each => {
        const place = each.closest('.jp-OutputArea-output').getBoundingClientRect();
        return each.getBoundingClientRect().right > place.right + 1;
    }).length"""
    assert page.eval_on_selector_all(".jp-OutputArea .js-plotly-plot .main-svg", cut) == 0
    drawn.first.scroll_into_view_if_needed()
    watched.shoot(f"lab-{name}")
    stop_kernels(page, server)
    (run,) = (folder / "outputs" / name).iterdir()
    assert store.manifest(run)["status"] == "ok"
    assert store.manifest(run)["parameters"]["limit"] == 8
    assert len(store.read(run))


def stop_kernels(page: Any, server: dict[str, Any]) -> None:
    """Each takes half a gigabyte."""
    at, headers = f"{server['url']}api/kernels", {"Authorization": f"token {server['token']}"}
    for kernel in page.request.get(at, headers=headers).json():
        assert page.request.delete(f"{at}/{kernel['id']}", headers=headers).ok


def saved(page: Any, notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, once it is saved with what it gave."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with suppress(ValueError):  # it is being written
            held = json.loads(notebook.read_text(encoding="utf-8"))
            code = [cell for cell in held["cells"] if cell["cell_type"] == "code"]
            if any(cell["outputs"] for cell in code):
                return code
        page.wait_for_timeout(200)
    raise AssertionError(f"{notebook} was not saved within 30 s")

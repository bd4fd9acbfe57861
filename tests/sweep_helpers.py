"""Sweeps of one small grid whose notebook obeys a file with ``trouble``, which is none of its key.

Its kernels are quick: what a warm kernel sets back is replaced, since it is not what is tested here and takes ten
seconds to import.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from anchorlens import parameters

KILLS = int(os.environ.get("ANCHORLENS_FAULTS", "3"))
LIMITS = (1, 2, 3)
CODE = """\
import os, time
from pathlib import Path
import pandas as pd
if Path({trouble!r}).exists():
    exec(Path({trouble!r}).read_text())
time.sleep(0.2)
frame = pd.DataFrame({{"example": range(50), "value": [limit / (1 + n) for n in range(50)]}})
frame.to_parquet(Path(folder) / "results.parquet")
"""
QUICK = """\
import sys, types
sys.modules["rfc3987_syntax"] = None  # jsonschema does without, and saves a second for each process
if "ipykernel_launcher" in " ".join(sys.orig_argv):
    stand_in = sys.modules["anchorlens.warm.inside"] = types.ModuleType("inside")
    stand_in.begin = stand_in.end = lambda *where: []
"""


class Sweeps:
    """Sweeps of one grid in one store, all of whose processes are known by a mark in their environment."""

    def __init__(self, folder: Path, notebook: str = "") -> None:
        self.folder, self.store, self.trouble = folder, folder / "store", folder.parent / "trouble.py"
        path = folder.parent / "small.ipynb"  # one path for all: part of what people read, not of the key
        tour = json.loads(parameters.find("0_tour").read_text(encoding="utf-8"))
        declaration = next(cell for cell in tour["cells"] if cell["metadata"].get("tags") == ["parameters"])
        cell = {**declaration, "metadata": {}, "id": "code", "source": CODE.format(trouble=str(self.trouble))}
        path.write_text(json.dumps({**tour, "cells": [declaration, cell]}))
        site = folder.parent / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(QUICK)
        self.grid, self.mark = folder / "grid.yaml", f"{folder}-{time.monotonic_ns()}"
        given = {"model": "toy", "limit": list(LIMITS), "batch_tokens": 512, "notebooks": [notebook or str(path)]}
        self.grid.write_text(json.dumps(given))
        paths = [*([] if notebook else [str(site)]), str(Path(parameters.__file__).parents[1])]
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "ANCHORLENS_FAULT": self.mark}
        self.env.pop("PYTEST_CURRENT_TEST", None)
        self.said, self.begin = folder / "said.txt", None  # what it says on stderr; what its process does at first

    def begins_with(self, code: str) -> None:
        """Have each process of the sweep run ``code`` first."""
        site = self.folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(QUICK + code)
        self.env["PYTHONPATH"] = os.pathsep.join([str(site), self.env["PYTHONPATH"]])

    def start(self, *more: str, terminal: int | None = None) -> subprocess.Popen:
        """With ``--json``, what is said on stderr going into a file; or on a terminal, by its file descriptor."""
        words = [sys.executable, "-m", "anchorlens.cli", "sweep", str(self.grid), "--store", str(self.store), *more]
        if terminal is not None:
            return subprocess.Popen(words, stdout=terminal, stderr=terminal, env=self.env, preexec_fn=self.begin)
        with self.said.open("a") as file:
            return subprocess.Popen(
                [*words, "--json"],
                stdout=subprocess.PIPE,
                stderr=file,
                env=self.env,
                text=True,
                preexec_fn=self.begin,
            )

    def run(self, *more: str) -> tuple[int, list[dict]]:
        """The exit code of a sweep and its events."""
        return self.ended(self.start(*more))

    def ended(self, sweep: subprocess.Popen) -> tuple[int, list[dict]]:
        said = sweep.communicate(timeout=180)[0]
        return sweep.returncode, [json.loads(line) for line in said.splitlines()]

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("ANCHORLENS_FAULT") == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return [each for each in found if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]

    def victim(self, what: str) -> psutil.Process | None:
        of = {"worker": "spawn_main", "kernel": "ipykernel_launcher", "scheduler": "anchorlens.cli"}[what]
        for each in self.processes():
            try:
                if of in " ".join(each.cmdline()):
                    return each
            except psutil.Error:
                continue
        return None

    def is_clean(self) -> None:
        """No process is left, and no folder but those of results and of the sweeps."""
        until = time.monotonic() + 15
        while left := self.processes():
            assert time.monotonic() < until, f"left behind: {[each.cmdline() for each in left]}"
            time.sleep(0.1)
        runs = [path.name for path in self.store.glob("*/*") if path.is_dir()]
        whole = {name for name in runs if "." not in name}
        assert [name for name in runs if name.endswith((".partial", ".replaced")) and name.split(".")[0] in whole] == []

    def tables(self) -> dict[str, pd.DataFrame]:
        paths = sorted(self.store.glob("*/*/results.parquet"))
        return {f.parent.name: pd.read_parquet(f) for f in paths if "." not in f.parent.name}

    def is_as(self, undisturbed: dict[str, pd.DataFrame], *, cached: int = 0) -> list[dict]:
        """The same command again completes everything; at least ``cached`` runs were not run again."""
        code, events = self.run()
        assert code == 0, (events, self.said.read_text())
        assert count(events, "cached") >= cached
        self.is_clean()
        found = self.tables()
        assert found.keys() == undisturbed.keys()
        for key, table in undisturbed.items():
            pd.testing.assert_frame_equal(found[key], table, check_exact=True)
        return events


def count(events: list[dict], what: str) -> int:
    return sum(event["event"] == what for event in events)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def undisturbed(place):
    (place / "undisturbed").mkdir()
    sweeps = Sweeps(place / "undisturbed")
    began = time.monotonic()
    code, events = sweeps.run()
    sweeps.took = time.monotonic() - began
    assert (code, count(events, "done")) == (0, len(LIMITS)), sweeps.said.read_text()
    sweeps.is_clean()
    return sweeps


@pytest.fixture
def sweeps(place, request):
    folder = place / f"{request.node.name}"[:80].replace("[", "-").replace("]", "")
    folder.mkdir()
    made = Sweeps(folder)
    yield made
    made.trouble.unlink(missing_ok=True)
    for each in made.processes():
        each.kill()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path: Path) -> None:
    """One byte in the middle, which leaves a parquet file's footer as it was."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)

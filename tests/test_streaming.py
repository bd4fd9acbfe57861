"""A run that was cut short goes on where it ended, bit for bit, and memory does not grow with the number of prompts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from conftest import random_model

from anchorlens import drafts, parameters, passes, preflight, store, tasks
from anchorlens.analyses import information_flow
from anchorlens.batch import Session
from anchorlens.prompts import Encoder
from anchorlens.windows import windows

SLOW = """\
import os, signal, sys, time
from pathlib import Path
import pandas as pd
from anchorlens import batch

log, go, first = Path(data), Path(data + ".go"), os.getppid()


def measure(part):
    if part[0] >= 4 and not go.exists():
        log.open("a").write(f"waits {os.getpid()}\\n")
        while not go.exists():
            time.sleep(0.05)
            if os.getppid() != first:
                os._exit(9)
    log.open("a").write(f"part {part[0]}\\n")
    rows = pd.DataFrame({"example": part, "seed": 0, "value": [n / 3 for n in part]})
    return [rows.astype(COLUMNS)]


COLUMNS = {"example": "int64", "seed": "int64", "value": "float64"}
run = batch.here("0_tour", globals())
frame = run.gather(measure, [[n, n + 1] for n in range(0, 10, 2)], COLUMNS)
print(run.finish())
"""  # waits in the third of five parts until it is told to go on


@pytest.fixture
def slow(tmp_path) -> Path:
    notebook = json.loads(parameters.find("0_tour").read_text(encoding="utf-8"))
    declaration = next(cell for cell in notebook["cells"] if cell["metadata"].get("tags") == ["parameters"])
    source = f"data = {str(tmp_path / 'log.txt')!r}\n{SLOW}"
    cell = {**declaration, "metadata": {}, "source": source, "id": "code"}
    path = tmp_path / "slow.ipynb"
    path.write_text(json.dumps({**notebook, "cells": [declaration, cell]}))
    return path


def begin(notebook: Path, *more: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "anchorlens.cli", "run", str(notebook), "--store", str(notebook.parent / "s"), *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(log: Path, said: str) -> str:
    """The line of the log that begins so, when it is there."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for line in log.read_text().splitlines() if log.is_file() else []:
            if line.startswith(said):
                return line
        time.sleep(0.05)
    raise AssertionError(f"nothing said {said!r} in {log}")


@pytest.mark.parametrize(
    "cut", [pytest.param("interrupt", marks=pytest.mark.slow), "kill the runner", "kill the kernel"]
)
def test_a_run_that_is_cut_short_goes_on_after_the_last_part_that_it_completed(slow, cut):
    log = slow.with_name("log.txt")
    process = begin(slow)
    kernel = int(wait_for(log, "waits").split()[1])
    if cut == "kill the kernel":
        os.kill(kernel, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGINT if cut == "interrupt" else signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == {"interrupt": 130, "kill the runner": -signal.SIGKILL, "kill the kernel": 1}[cut]
    (partial_folder,) = (slow.parent / "s" / "slow").iterdir()
    (partial_folder / "results-00003.parquet").write_bytes(b"PAR1 half a file")
    assert log.read_text().startswith("part 0\npart 2\nwaits")
    log.unlink()
    log.with_name("log.txt.go").touch()
    again = begin(slow)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "results: resuming: 2 of 5 parts are there" in said
    assert log.read_text().splitlines() == ["part 4", "part 6", "part 8"]
    (folder,) = (slow.parent / "s" / "slow").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "results.parquet", "run.ipynb"]
    assert store.manifest(folder)["resumed"] == 2
    assert store.read(folder)["value"].tolist() == [n / 3 for n in range(10)]


def test_a_forced_run_begins_anew(slow):
    log = slow.with_name("log.txt")
    process = begin(slow)
    wait_for(log, "waits")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    log.unlink()
    log.with_name("log.txt.go").touch()
    forced = begin(slow, "--force")
    _, said = forced.communicate(timeout=120)
    assert forced.returncode == 0, said
    assert "resuming" not in said
    assert log.read_text().splitlines() == [f"part {n}" for n in range(0, 10, 2)]
    (folder,) = (slow.parent / "s" / "slow").iterdir()
    assert store.manifest(folder)["resumed"] == 0


@pytest.fixture(scope="module")
def flow():
    """Section 2.1's measure on a random model that reads the toy's words, and windows of its prompts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(preflight.locate("toy").folder, local_files_only=True)
    lens = random_model(d_vocab=len(tokenizer), n_ctx=256)
    ready, _ = windows(Encoder(tokenizer, 256), drafts.load(tasks.SST2, toy=True, limit=20, seeds=[1, 2]), size=9)
    plan = partial(passes.plan, lens, batch_tokens=300)
    return passes.over(partial(information_flow.information_flow, lens), plan), ready


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_run_gone_on_with_is_bit_for_bit_one_that_was_never_interrupted(flow, tmp_path, after):
    measure, ready = flow
    done = 0

    def interrupted(window) -> Iterator[pd.DataFrame]:
        nonlocal done
        for frame in measure(window):
            yield frame
            if done == after:
                raise KeyboardInterrupt
        done += 1

    run = store.Run(tmp_path / "once")
    with pytest.raises(KeyboardInterrupt):
        Session(run).gather(interrupted, ready, information_flow.COLUMNS)
    later = Session(run, resumes=True)
    resumed = later.gather(measure, ready, information_flow.COLUMNS)
    whole = Session(store.Run(tmp_path / "whole")).gather(measure, ready, information_flow.COLUMNS)
    assert (len(ready), later.resumed) == (5, after)
    assert len(whole) == 40 * 3 * 3
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


# What the allocator keeps back differs by up to 5 MB; rows of 18,000 prompts held on to were 20 MB, the prompts more.
SLACK = 10_000_000


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path):
    settled = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    script = Path(__file__).with_name("streaming_memory.py")
    command = [sys.executable, str(script), str(tmp_path / "run"), "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ, **settled})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert (found["prompts"], found["windows"]) == (20_000, 40)
    assert found["grown"] < SLACK, "between 2,000 and 20,000 prompts"

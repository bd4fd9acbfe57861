"""What a user waits for around the analyses: the command line's help, and the runs of a grid."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

HELP = """
import sys
sys.argv = ["anchorlens", "--help"]
from anchorlens.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
GRID = """
notebooks: all
model: toy
task: [sst2, trec, agnews, emo]
seeds: [[42], [43]]
limit: 50
"""
RUNS = 48


def help_seconds(rounds: int) -> tuple[float, bool]:
    """Wall seconds of ``anchorlens --help``, median, the interpreter's start included; and whether torch is imported.

    Raises:
        RuntimeError: if the command fails.
    """
    took, imported = [], False
    for _ in range(rounds):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
        took.append(time.perf_counter() - began)
        if done.returncode or "Usage" not in done.stdout:
            raise RuntimeError(f"anchorlens --help failed with exit code {done.returncode}: {done.stderr[-500:]}")
        imported = imported or done.stderr.strip().endswith("True")
    return median(took), imported


def sweep_seconds() -> float:
    """Wall seconds of a run in a sweep of ``GRID`` by one worker, mean of all but the first, in which it starts.

    Raises:
        RuntimeError: if not every run was done.
    """
    with tempfile.TemporaryDirectory() as folder:
        (grid := Path(folder) / "grid.yaml").write_text(GRID)
        command = [sys.executable, "-m", "anchorlens.cli", "sweep", str(grid), "--workers", "1", "--json"]
        done = subprocess.run([*command, "--store", folder], capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    took = [event["seconds"] for event in events if event["event"] == "done"]
    if len(took) != RUNS:
        raise RuntimeError(f"{len(took)} of {RUNS} runs were done, exit code {done.returncode}: {done.stderr[-500:]}")
    return mean(took[1:])

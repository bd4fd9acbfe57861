"""What a user waits for around the analyses: the command line's help, and a run with a warm kernel."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HELP = """
import sys
sys.argv = ["anchorlens", "--help"]
from anchorlens.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
NOTEBOOK, LIMIT = "2_3_extraction", 40


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


def warm_seconds(rounds: int) -> float:
    """Wall seconds of a notebook on the toy model, median of the runs after the first, in one warm kernel."""
    from anchorlens import batch, warm

    took = []
    with tempfile.TemporaryDirectory() as store, warm.kernel() as kernel:
        for seed in range(1 + rounds):  # another seed is another run
            began = time.perf_counter()
            batch.run(NOTEBOOK, {"limit": LIMIT, "seeds": [seed]}, root=Path(store), bar=False, kernel=kernel)
            took.append(time.perf_counter() - began)
    return median(took[1:])

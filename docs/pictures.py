"""Draw the pictures of README and docs anew: ``make pictures``. It needs Chromium or Chrome.

What ``scaling.png`` shows is not measured again: it stands in ``scaling.json`` (see ``docs/scaling.py``).
"""

import shutil
import sys
from pathlib import Path

import scaling

from anchorlens import batch, figures, warm
from anchorlens.cli.runs import DEMO

SEEDS = {"task": "agnews", "seeds": [42, 43, 44, 45, 46]}
# One figure of each section's notebook, with what it is run with on the toy (README says so).
FIGURES = {
    "2_1_information_flow": ("information_flow", SEEDS),
    "2_2_isolation": ("isolation", SEEDS),
    "2_3_extraction": ("extraction", SEEDS),
    "3_1_reweighting": ("reweighting", DEMO["3_1_reweighting"]),
    "3_2_compression": ("compression", SEEDS),
    "3_3_diagnosis": ("confusion", DEMO["3_3_diagnosis"]),
}

if __name__ == "__main__":
    if not figures.has_browser():
        sys.exit("no Chromium or Chrome was found, so pictures cannot be drawn: apt-get install chromium")
    with warm.kernel() as kernel:
        for notebook, (figure, given) in FIGURES.items():
            done = batch.run(notebook, given, kernel=kernel)
            shutil.copy(done.folder / f"{figure}.png", Path(__file__).parent)
            print(f"drew docs/{figure}.png from {done.folder}")
    print(f"drew {scaling.draw()}")

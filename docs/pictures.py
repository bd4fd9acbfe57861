"""Draw the pictures of README and docs anew: ``make pictures``. It needs Chromium or Chrome.

What ``scaling.png`` shows is not measured again: it stands in ``scaling.json`` (see ``docs/scaling.py``).
"""

import shutil
import sys
from pathlib import Path

import scaling

from anchorlens import batch, figures

if not figures.has_browser():
    sys.exit("no Chromium or Chrome was found, so pictures cannot be drawn")
done = batch.run("2_1_information_flow", {"task": "agnews", "seeds": [42, 43, 44, 45, 46]})
shutil.copy(done.folder / "information_flow.png", Path(__file__).parent)
print(f"drew docs/information_flow.png from {done.folder}")
print(f"drew {scaling.draw()}")

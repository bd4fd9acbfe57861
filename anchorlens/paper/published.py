"""What the paper publishes, as data: numbers with their tables, and shapes of figures with tolerances."""

import json
from pathlib import Path
from typing import Any

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))

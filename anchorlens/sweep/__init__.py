"""Many runs: models x tasks x draws x notebooks, resumable, on this machine."""

from anchorlens.sweep.events import Events, status
from anchorlens.sweep.grid import Job, jobs, read, with_words
from anchorlens.sweep.stopping import stoppable

__all__ = ["Events", "Job", "jobs", "read", "status", "stoppable", "with_words"]

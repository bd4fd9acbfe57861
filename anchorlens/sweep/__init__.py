"""Many runs: models x tasks x draws x notebooks, resumable, on this machine or the nodes of a Ray cluster."""

from collections.abc import Mapping
from typing import Any

from anchorlens.sweep.events import Events, status
from anchorlens.sweep.grid import Job, jobs, read, with_words
from anchorlens.sweep.progress import plain
from anchorlens.sweep.stopping import stoppable
from anchorlens.values import ParameterError

__all__ = [
    "ENGINES",
    "Events",
    "Job",
    "ParameterError",
    "crew",
    "jobs",
    "plain",
    "read",
    "status",
    "stoppable",
    "with_words",
]

ENGINES = ("local", "ray")


def crew(engine: str, workers: int, address: str, grid: Mapping[str, Any]) -> Any:
    """The ``workers.Crew`` of an engine, as a context in which it lasts; 0 ``workers``: as many as is usual for it.

    Raises:
        ParameterError: for an engine that there is not, or an address of one that has none.
        cluster.ClusterError: for a cluster that is not there, or has no room.
    """
    if engine not in ENGINES:
        raise ParameterError(f"engine {engine!r}: there are {' and '.join(ENGINES)}; give one of them as --engine.")
    if engine == "ray":
        from anchorlens.sweep import cluster

        return cluster.Crew(workers, address, grid)
    if address:
        raise ParameterError(f"--address {address!r} is that of a Ray cluster: give --engine ray too, or leave it out.")
    from anchorlens.sweep import local

    return local.Crew(workers)

"""A Ray cluster as a sweep sees it: whether it answers, and how many workers its nodes have room for."""

import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import TextIOBase
from pathlib import Path
from typing import Any

TRACKING = "tracking"  # the thread that may tell of what it could not track, in an event
_REACH = 5  # seconds for an address to answer; Ray itself would go on for minutes, and then end this process
_SHARED = 100 * 2**20  # bytes that a Ray of our own keeps for objects, of which we have none


class ClusterError(RuntimeError):
    """A cluster on which the sweep cannot run as it was asked to."""


class MissingClusterError(ClusterError):
    """A cluster that is not there."""


class OfMainThread(TextIOBase):
    """A stdout for the main thread, and that which tracks; what other threads print goes to stderr."""

    def __init__(self, stdout: Any) -> None:
        self._stdout = stdout

    def write(self, text: str, /) -> int:
        """As of any stream."""
        return self.mine().write(text)

    def flush(self) -> None:
        """As of any stream."""
        self.mine().flush()

    def mine(self) -> Any:
        """The stream of the thread that asks."""
        now = threading.current_thread()
        return self._stdout if now is threading.main_thread() or now.name == TRACKING else sys.stderr


def connected(address: str) -> Any:
    """The module ``ray``, connected with the cluster at an address or, without one, with a Ray of this machine.

    Raises:
        ClusterError: if Ray is not installed, or will not have us.
        MissingClusterError: if nothing answers at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # spares a warning; the actor does it itself
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise ClusterError(
            f"engine 'ray' needs Ray, which is not installed ({error}). Install it here and on every node with `pip "
            "install 'anchorlens[ray]'`, or take --engine local."
        ) from error
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        _reach(address)
    own = {"include_dashboard": False, "object_store_memory": _SHARED} if not address else {}
    try:
        ray.init(address or "local", **own, **quiet)
    except (OSError, RuntimeError, ValueError, ImportError) as error:  # Ray's own words; also of another version
        kind = MissingClusterError if isinstance(error, ConnectionError) else ClusterError
        raise kind(
            f"address {address or 'local'!r}: Ray says: {' '.join(str(error).split())[:400]} Start it with `ray start "
            "--head`, and give the address that it says; without --address, Ray is started on this machine."
        ) from error
    return ray


def _reach(address: str) -> None:
    """Refuse an address at which nothing answers; "auto" is where Ray says that one was started here."""
    where = address
    if address == "auto":
        where = os.environ.get("RAY_ADDRESS", "")
        with suppress(OSError):
            where = where or Path("/tmp/ray/ray_current_cluster").read_text().strip()
    host, colon, port = where.removeprefix("ray://").rpartition(":")
    if address == "auto" and not where:
        return  # Ray says at once that there is none
    if not (colon and port.isdigit()):
        raise ClusterError(f"address {address!r}: expected auto, HOST:PORT or ray://HOST:PORT, as `ray start` says it.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH).close()
    except (OSError, OverflowError) as error:
        raise MissingClusterError(
            f"address {address!r}: nothing answers at {where} ({error}). Start Ray there with `ray start --head "
            f"--port={port}`, or leave --address out, and Ray is started on this machine."
        ) from error


def gpus_of(grid: Mapping[str, Any]) -> int:
    """How many GPUs a worker must have for every run of a grid; 0: none wants one."""
    only = [each for each in (grid.get("only") or {}).values() if isinstance(each, Mapping)]

    def values(name: str, default: Any) -> list[Any]:
        found = [grid.get(name, default), *(each[name] for each in only if name in each)]
        return [value for each in found for value in (each if isinstance(each, list) else [each])]

    devices = [str(device) for device in values("device", "auto")]
    if not any(device == "auto" or device.startswith("cuda") for device in devices):
        return 0
    named = [int(number) + 1 for device in devices if (number := device.partition("cuda:")[2]).isdigit()]
    return max([1, *named, *(count for count in values("n_devices", 0) if isinstance(count, int))])


def shares(nodes: Sequence[Mapping[str, float]], gpus: int, workers: int) -> tuple[int, int]:
    """How many workers of ``gpus`` GPUs a cluster of ``nodes`` has room for, and with how many CPUs each.

    Args:
        nodes: what each has, as Ray tells it (CPU, GPU).
        workers: how many are asked for; 0: as many as there are GPUs for, or one for each node.

    Raises:
        ClusterError: if there is no room for so many, with one CPU each.
    """
    useful = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus]
    wanted = workers or (sum(int(node["GPU"]) // gpus for node in useful) if gpus else len(useful))

    def room(cpus: int) -> int:
        most = [(node["CPU"] // cpus, node["GPU"] // gpus if gpus else node["CPU"]) for node in useful]
        return sum(int(min(each)) for each in most)

    for cpus in range(int(max((node["CPU"] for node in useful), default=0)), 0, -1):
        if room(cpus) >= wanted:
            return wanted, cpus
    asked = f"{wanted or 1} workers with 1 CPU{f' and {gpus} GPU' if gpus else ''} each"
    raise ClusterError(
        f"{asked} were asked for, and Ray's cluster has {_having(nodes)}: room for {room(1)}. Give at most so many as "
        "--workers, or have more nodes."
    )


def _having(nodes: Sequence[Mapping[str, float]]) -> str:
    each = ["{:g} CPU, {:g} GPU".format(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes]
    return f"{len(nodes)} nodes ({'; '.join(each)})" if nodes else "no node"


def crowded(ray: Any, needs: Mapping[str, int], seconds: float) -> str:
    """What is said of a worker for which there was no room."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    free = ray.available_resources()
    asked = ", ".join(f"{count} {name}" for name, count in needs.items())
    return (
        f"no node had room for a worker ({asked}) for {seconds:g} s: Ray's cluster has {_having(nodes)}, of which "
        f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU in all are free. What was done is kept: start the "
        "same command again when nodes are back or free."
    )

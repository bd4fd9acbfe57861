"""The engine ``ray``: the same workers as actors of a Ray cluster, whose nodes share the store's folder.

What decides a key is looked up by a worker, not here, where there may be no GPU; each run is planned again where it
happens, and one whose key would be another ends the sweep before it starts.

A lost actor is replaced by a new one, not by Ray's own ``max_restarts``: a call to an actor that is being restarted is
refused at once, so that a run's tries would be over before its worker is back.
"""

import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from anchorlens import batch, parameters, store
from anchorlens.sweep import marks
from anchorlens.sweep.actor import Actor, files, sent
from anchorlens.sweep.grid import Job
from anchorlens.sweep.inside import failed
from anchorlens.sweep.nodes import ClusterError, OfMainThread, connected, crowded, gpus_of, shares
from anchorlens.sweep.workers import UnplacedError

_PLACING = 5  # seconds for a worker to be given its share of a node
_STARTING = 180  # seconds for its process to start, with imports from a slow folder
_PATIENCE = 10  # seconds for kernels to end


class StartError(RuntimeError):
    """A worker whose process has a place and did not answer; its run is tried again."""


class Crew:
    """Actors of one cluster: each has the GPUs that a run asks for and a share of its node's CPUs.

    Args:
        workers: how many; 0: as many as GPUs allow or, where there are none or runs want none, one for each node.
        address: "auto" or that of a cluster; empty: Ray is started on this machine for as long as this lasts.
        grid: what the sweep says, of which device and n_devices matter here.

    Raises:
        ClusterError: if Ray is not installed, or the cluster has no room for so many.
        MissingClusterError: if nothing answers at the address.
    """

    def __init__(self, workers: int, address: str, grid: Mapping[str, Any]) -> None:
        self._workers, self._address, self._grid = workers, address, grid
        self._every: list[Worker] = []
        self._until = ExitStack()

    def __enter__(self) -> "Crew":
        with ExitStack() as until:
            until.enter_context(redirect_stdout(OfMainThread(sys.stdout)))  # Ray tells of deaths in the midst of ours
            self._ray = connected(self._address)
            until.callback(self._ray.shutdown)
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            gpus = gpus_of(self._grid) if any(node.get("GPU", 0) for node in nodes) else 0
            self._size, cpus = shares(nodes, gpus, self._workers)
            self._needs = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
            until.callback(self.end)
            self._until = until.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._until.close()

    def plan(self, notebook: str, given: Mapping[str, Any], root: Path) -> batch.Plan:
        """As ``batch.plan``, by a worker; the place in the store is said as it is here.

        Raises:
            ClusterError: with what the worker raised, under its ``kind``.
        """
        if not self._every:
            self._every = [Worker(self._ray, self._needs)]
        said = self._every[0].plan(*sent(notebook, given, root))
        if "error" in said:
            error = ClusterError(f"{said['kind']}: {said['error']} (on node {said['node']})")
            error.kind = said["kind"]  # type: ignore[attr-defined]
            raise error
        made_of = said["made_of"]
        final = root.resolve() / made_of["notebook"] / store.key(made_of)
        return batch.Plan(parameters.find(notebook), dict(given), {}, made_of, store.Run(final))

    def hire(self, jobs: Sequence[Job], sign: Path) -> list["Worker"]:
        """Workers for jobs, not more than these; they start when they are given a run."""
        size = min(self._size, len(jobs))
        self._every += [Worker(self._ray, self._needs) for _ in range(size - len(self._every))]
        for worker in self._every:
            worker.sign = sign.resolve()
        return self._every[:size]

    def close(self) -> None:
        """End all workers, and their kernels in good order."""
        closing = [worker.closing() for worker in self._every]
        if closing := [each for each in closing if each is not None]:
            self._ray.wait(closing, num_returns=len(closing), timeout=_PATIENCE)
        self.end()

    def end(self) -> None:
        """End all workers and what their runs have started on any node, at once."""
        for worker in self._every:
            worker.end()
        if ending := [worker.ending for worker in self._every if worker.ending is not None]:
            self._ray.wait(ending, num_returns=len(ending), timeout=_PATIENCE)
        self._every = []


class Worker:
    """An actor that runs jobs one by one, another one whenever it dies, and all that they start.

    ``end`` may come while an actor is made, in a thread: it begins a new generation, and what is made for an earlier
    one ends where it is made, so that it never stands beside, or in place of, its successor.
    """

    def __init__(self, ray: Any, needs: Mapping[str, int]) -> None:
        self._ray, self._needs, self._mark, self.sign = ray, needs, "", Path()
        self._actor = self._place = self.ending = None
        self._node: dict[str, str] = {}
        self._generation, self._lock = 0, threading.Lock()

    def plan(self, *given: Any) -> dict[str, Any]:
        """What a run's key is made of there, or what is wrong with it."""
        try:
            return self._ray.get(self._ready(self._generation).plan.remote(*given))
        except StartError as error:
            raise ClusterError(f"{error}, so that no run could be planned: look whether nodes import slowly") from error
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"a worker died before a run was planned: {_short(error)}") from error

    def start(self, given: tuple[Any, ...], limit: float) -> Future:
        """The future of a run; the actor is placed and made first, which the limit does not count."""
        future: Future = Future()
        threading.Thread(target=self._fly, args=(future, given, limit, self._generation), daemon=True).start()
        return future

    def look(self, future: Future) -> None:
        """Nothing: Ray says of each call how it ended."""

    def outcome(self, future: Future, limit: float) -> dict[str, Any]:
        """What became of a run, whatever became of its worker.

        Raises:
            ClusterError: if the worker is where the store or a file is not, or would not give what was planned.
        """
        try:
            said = future.result()
            if said.get("refused"):  # never by kind: a notebook's own exception may have any name
                raise ClusterError(f"on node {self._node.get('name')}: {said['error']}")
            return said
        except UnplacedError as error:
            said = {"status": "unplaced", "error": str(error)}
        except StartError as error:
            said = failed("ActorDiedError", str(error))
        except self._ray.exceptions.GetTimeoutError:
            said = failed("TimeoutError", f"took longer than the limit of {limit:g} s and was ended")
        except self._ray.exceptions.RayError as error:
            said = failed("ActorDiedError", f"its worker on node {self._node.get('name')} died ({_short(error)})")
        self.end()
        return said

    def closing(self) -> Any:
        """Ask for the kernel to end in good order, and for what tells that it has."""
        return None if self._actor is None else self._actor.close.remote()

    def end(self) -> None:
        """End the actor and all that its runs have started, at once; ``ending`` tells when all is gone."""
        with self._lock:
            self._generation += 1
            actor, place, node, mark = self._actor, self._place, self._node, self._mark
            self._actor, self._place, self._node = None, None, {}
        self._give_back(actor, place)
        if node:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            there = NodeAffinitySchedulingStrategy(node["id"], soft=False)
            self.ending = self._ray.remote(marks.end).options(num_cpus=0, scheduling_strategy=there).remote(mark)

    def _give_back(self, actor: Any, place: Any) -> None:
        if actor is not None:
            with suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.kill(actor)
        if place is not None:
            with suppress(self._ray.exceptions.RayError):
                self._ray.util.remove_placement_group(place)

    def _fly(self, future: Future, given: tuple[Any, ...], limit: float, generation: int) -> None:
        try:
            actor = self._ready(generation)
            notebook, given_parameters, root, made_of = given
            named, there, folder = sent(notebook, given_parameters, Path(root))
            done = actor.work.remote(named, there, folder, made_of, [str(self.sign), *files(there)])
            future.set_result(self._ray.get(done, timeout=limit or None))
        except BaseException as error:  # of a thread, so for whoever waits
            future.set_exception(error)

    def _ready(self, generation: int) -> Any:
        """The actor, once it has answered.

        Raises:
            StartError: if it does not, or the worker was ended meanwhile.
        """
        if (actor := self._kept(generation)) is not None:
            return actor
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if (ending := self.ending) is not None:  # so that the new kernel does not share a GPU with the old one
            self._ray.wait([ending], timeout=_PATIENCE)
        place = placement_group([dict(self._needs)])
        if not place.wait(_PLACING):
            self._give_back(None, place)
            raise UnplacedError(crowded(self._ray, self._needs, _PLACING))
        options = {"num_cpus": self._needs["CPU"], "num_gpus": self._needs.get("GPU", 0), "max_restarts": 0}
        at = PlacementGroupSchedulingStrategy(placement_group=place)
        mark = uuid.uuid4().hex  # its own: what ends the last actor's kernel may be late, and must spare this one
        actor = self._ray.remote(Actor).options(**options, scheduling_strategy=at).remote(mark, self._needs)
        try:
            self._kept(generation, _actor=actor, _place=place, _mark=mark, ending=None)
        except StartError:
            self._give_back(actor, place)
            raise
        try:
            node = self._ray.get(actor.where.remote(), timeout=_STARTING)
        except self._ray.exceptions.GetTimeoutError as error:  # the limit is that of runs
            raise StartError(f"its worker did not start within {_STARTING} s") from error
        return self._kept(generation, _node=node)

    def _kept(self, generation: int, **found: Any) -> Any:
        """The actor of this generation, if there is one, when ``found`` was taken note of.

        Raises:
            StartError: if another generation has begun.
        """
        with self._lock:
            if generation != self._generation:
                raise StartError("its worker was ended while it started")
            vars(self).update(found)
            return self._actor


def _short(error: BaseException) -> str:
    """Ray's errors are paragraphs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"

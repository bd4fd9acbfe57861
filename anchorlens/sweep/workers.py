"""The loop of a sweep, for whichever engine: gives runs to workers, tries lost ones again, tells what happens."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from anchorlens import batch, claims, store
from anchorlens.sweep.events import Events
from anchorlens.sweep.grid import Job

TRIES = 3  # of a run whose worker or kernel dies
DIED = (
    "ActorDiedError",
    "BrokenProcessPool",
    "DeadKernelError",
    "ProcessExpired",
    "WarmKernelError",
)  # abnormal ends, after which a run is tried again
GRACE = 300  # seconds beyond its limit within which a run's worker must have answered: it may have to start first
_LOOK = 1.0  # seconds between looks at who is late, and at what others do
_HEED = 0.1  # seconds between looks at whether the sweep was told to end


class UnplacedError(RuntimeError):
    """A worker that has no place to be, so that its run is anybody's again; an end of the sweep when none has one."""


@runtime_checkable
class Worker(Protocol):
    """One run at a time, in a process that is kept from run to run and replaced when it dies."""

    def start(self, given: tuple[Any, ...], limit: float) -> Any:
        """The ``concurrent.futures.Future`` of ``inside.work(*given)``, which may take ``limit`` seconds (0: any).

        A future that says when it is ``running`` is given up by the loop at its limit; any other has to end by itself.
        """
        ...

    def look(self, future: Any) -> None:
        """Now and then, while a run goes on: one that will never be answered is to be ended."""
        ...

    def outcome(self, future: Any, limit: float) -> dict[str, Any]:
        """What became of it: ``status``, with ``kind`` and ``error`` where that is failed, ``error`` where unplaced."""
        ...

    def end(self) -> None:
        """End the process and what its runs have started, at once."""
        ...


@runtime_checkable
class Crew(Protocol):
    """The workers of an engine."""

    def plan(self, notebook: str, given: Mapping[str, Any], root: Path) -> batch.Plan:
        """As ``batch.plan``, with what the workers see: the device that "auto" is, files and weights."""
        ...

    def hire(self, jobs: Sequence[Job], sign: Path) -> Sequence[Worker]:
        """Workers for jobs, not more than these; ``sign`` is a file by which each may know the store."""
        ...

    def close(self) -> None:
        """End all workers, and their kernels in good order."""
        ...

    def end(self) -> None:
        """End all workers and what their runs have started, at once."""
        ...


@dataclass
class _Flight:
    """A run that a worker was given; ``began`` when the worker was first seen to have taken it, if that can be seen."""

    worker: Worker
    job: Job
    attempt: int
    since: float
    began: float | None = None

    def late(self, latest: float) -> bool:
        """Whether it should have ended by now, if one that began at ``latest`` should."""
        return self.since < latest - GRACE if self.began is None else self.began < latest

    def given_up(self, limit: float) -> dict[str, Any]:
        """What became of it, when its worker was ended."""
        self.worker.end()
        took = f"took longer than the limit of {limit:g} s and was ended"
        silent = f"its worker did not answer within the limit of {limit:g} s and {GRACE} s more, and was ended"
        return {"status": "failed", "kind": "TimeoutError", "error": silent if self.began is None else took}


class _Flights(dict[Any, _Flight]):
    """By the future of each run."""

    looked = 0.0  # when it was looked who is late

    def over(self, limit: float, heed: Callable[[], None]) -> list[tuple[Any, _Flight]]:
        """Those that have ended, or took too long, or whose workers, suspended before they took one, never say so.

        None after a while: there is more to look at.
        """
        until = time.monotonic() + _LOOK
        while not (done := wait(self, timeout=_HEED, return_when=FIRST_COMPLETED).done) and time.monotonic() < until:
            if not self:  # others do what is left
                time.sleep(_HEED)
            heed()
        late = self._late(limit) if time.monotonic() >= self.looked + _LOOK else []  # however often others end
        return [(future, self.pop(future)) for future in {*done, *late}]

    def _late(self, limit: float) -> list[Any]:
        now = self.looked = time.monotonic()
        for future, flight in self.items():
            flight.worker.look(future)
            if flight.began is None and future.running():
                flight.began = now
        return [future for future, flight in self.items() if limit and flight.late(now - limit)]


def run(
    jobs: Sequence[Job],
    root: Path,
    events: Events,
    crew: Crew,
    *,
    limit: float = 0.0,
    fail_fast: bool = False,
) -> bool:
    """Run jobs that are not done yet, and tell what happens to each.

    Args:
        events: are told, and say by ``heed`` whether the sweep is to end: it is asked between steps alone.
        crew: the workers, each with a kernel of its own that is kept from run to run.
        limit: seconds that a run may take, by the clock that nobody sets; 0: any. While another process does it, the
            worker does others, and no time counts.
        fail_fast: start no further run after one that failed.

    Returns:
        Whether all is done. No process that a run has started is left.

    Raises:
        UnplacedError: when no worker has a place any more.
        cluster.ClusterError: when one is where the store is not, or would not give the results that were planned.
    """
    waiting: list[tuple[Job, int]] = []
    failed, flying = 0, _Flights()
    elsewhere: list[tuple[Job, int]] = []  # which another process does; given to a worker when that has ended
    resting: list[Worker] = []  # without a place; asked again when another's run has ended
    try:
        for job in jobs:
            events.heed()
            if job.state == "cached":
                store.Run(job.folder).tidy()
                events.say("cached", job=job.name, folder=str(job.folder))
            else:
                if job.state == "new" and job.said:
                    events.say("damaged", job=job.name, folder=str(store.Run(job.folder).broken), error=job.said)
                waiting.append((job, 1))
        every = crew.hire([job for job, _ in waiting], events.path)
        waiting.reverse()  # taken from the end
        free = list(reversed(every))
        while True:
            if ended := [each for each in elsewhere if not claims.owned(each[0].folder)]:
                elsewhere = [each for each in elsewhere if each not in ended]
                waiting += ended
            while waiting and free and not (fail_fast and failed):
                events.heed()
                (job, attempt), worker = waiting.pop(), free.pop()
                events.say("started", job=job.name, folder=str(job.folder), attempt=attempt)
                given = (job.notebook, dict(job.parameters), str(root), dict(job.made_of))
                flying[worker.start(given, limit)] = _Flight(worker, job, attempt, time.monotonic())
            if not flying and (not elsewhere or (fail_fast and failed)):
                break
            for future, flight in flying.over(limit, events.heed):
                worker, job, attempt = flight.worker, flight.job, flight.attempt
                said = worker.outcome(future, limit) if future.done() else flight.given_up(limit)
                seconds = round(time.monotonic() - flight.since, 2)
                if said["status"] == "unplaced":  # no kind of failure: notebooks name their errors as they like
                    resting.append(worker)
                    if len(resting) == len(every):
                        raise UnplacedError(said["error"])
                    events.say("unplaced", job=job.name, error=said["error"], seconds=seconds)
                    waiting.append((job, attempt))
                    continue
                free, resting = [*resting, *free, worker], []  # those that have a place come first
                if said["status"] == "waits":
                    events.say("waits", job=job.name, folder=str(job.folder))
                    elsewhere.append((job, attempt))
                    continue
                if said["status"] == "failed" and said["kind"] in DIED and attempt < TRIES:
                    events.say("retried", job=job.name, error=said["error"], seconds=seconds, attempt=attempt)
                    waiting.append((job, attempt + 1))
                    continue
                if said["status"] == "failed":
                    failed += 1
                    if not batch.failure(store.Run(job.folder)):  # nobody was left to note it, or had begun
                        batch.note_failure(store.Run(job.folder), said["error"], job.parameters)
                event = said.pop("status")
                events.say(event, job=job.name, folder=str(job.folder), seconds=seconds, **said)
        crew.close()
        events.say("finished", failed=failed, left=len(waiting) + len(elsewhere))  # which may wait for those who track
    except BaseException:
        events.ending()
        crew.end()
        events.say("interrupted")
        raise
    return not failed and not waiting and not elsewhere

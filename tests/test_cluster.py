"""The engine on Ray: two nodes, one of them killed; whatever happens each run is done once and no process is left."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from importlib import util
from itertools import count as count_up
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from sweep_helpers import Sweeps, count
from typer.testing import CliRunner

from anchorlens import batch, cli, sweep
from anchorlens.sweep import actor, inside, marks, nodes, workers
from anchorlens.sweep import cluster as cluster_
from anchorlens.sweep.nodes import ClusterError

needs_ray = pytest.mark.skipif(util.find_spec("ray") is None, reason="no Ray here: pip install 'anchorlens[ray]'")
ONCE = """\
said = Path({said!r})
if limit == 1 and not said.exists():
    said.write_text(os.environ["RAY_RAYLET_PID"])
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    time.sleep(600)
"""  # the first try says on which node it is, and hangs with a child


class Nodes:
    """A Ray cluster of two nodes with one CPU each, and a head that has none."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        self.address = self.cluster.address

    def kill(self, raylet: int) -> None:
        """Kill the node of that raylet, and put another in its place later by ``mend``."""
        (lost,) = [node for node in self.nodes if raylet in self._pids(node)]
        self.nodes.remove(lost)
        self.cluster.remove_node(lost, allow_graceful=False)

    def mend(self) -> None:
        while len(self.nodes) < 2:
            self.nodes.append(self.cluster.add_node(num_cpus=1))

    def _pids(self, node) -> list[int]:
        return [each.process.pid for each in node.all_processes["raylet"]]


def left(mark: str) -> dict[str, list[psutil.Process]]:
    """Processes of the cluster's workers: actors, and what they have started."""
    found: dict[str, list[psutil.Process]] = {"actors": [], "started": []}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get("ANCHORLENS_FAULT") != mark or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if marks.NAME in environment:
                found["started"].append(process)
            elif "ray::Actor" in " ".join(process.cmdline()):
                found["actors"].append(process)
        except psutil.Error:
            continue
    return found


def clean(mark: str, patience: float = 20) -> None:
    until = time.monotonic() + patience
    while any((found := left(mark)).values()):
        assert time.monotonic() < until, found
        time.sleep(0.2)


def appears(path: Path, sweep: subprocess.Popen) -> str:
    until = time.monotonic() + 120
    while not (path.exists() and path.read_text()):
        assert sweep.poll() is None, sweep.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    return path.read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


def made(place: Path, name: str) -> Sweeps:
    (place / name).mkdir()
    return Sweeps(place / name)


@pytest.fixture(scope="module")
def undisturbed(place):
    """What a sweep on this machine gives, one run after the other."""
    sweeps = made(place, "undisturbed")
    assert sweeps.run()[0] == 0, sweeps.said.read_text()
    return sweeps.tables()


@pytest.fixture(scope="module")
def cluster(place, undisturbed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", Sweeps(place / "undisturbed").env["PYTHONPATH"])
        patch.setenv("ANCHORLENS_FAULT", str(place))  # of this, and of nodes that are put in the place of others
        found = Nodes()
        yield found
        found.cluster.shutdown()
    clean(str(place))


@pytest.fixture
def on_ray(place, cluster, request):
    """A sweep's folder, and its options."""
    cluster.mend()
    sweeps = made(place, request.node.name[-40:])
    yield sweeps, ["--engine", "ray", "--address", cluster.address]
    sweeps.trouble.unlink(missing_ok=True)
    for each in sweeps.processes():
        each.kill()


def same(found: dict[str, pd.DataFrame], want: dict[str, pd.DataFrame]) -> None:
    assert found.keys() == want.keys()
    for key, table in want.items():
        pd.testing.assert_frame_equal(found[key], table, check_exact=True)


@needs_ray
def test_a_node_that_is_killed_while_a_job_runs_loses_nothing(place, cluster, undisturbed, on_ray):
    sweeps, options = on_ray
    said = sweeps.folder / "raylet"
    sweeps.trouble.write_text(ONCE.format(said=str(said)))
    sweep_ = sweeps.start(*options)
    cluster.kill(int(appears(said, sweep_)))
    code, events = sweeps.ended(sweep_)
    assert (code, count(events, "done"), count(events, "retried"), count(events, "failed")) == (0, 3, 1, 0), events
    assert sorted(event["job"] for event in events if event["event"] == "done") == sorted(
        {event["job"] for event in events if event["event"] == "started"}
    )
    same(sweeps.tables(), undisturbed)
    clean(str(place))
    sweeps.is_as(undisturbed, cached=3)  # and a sweep on this machine finds all of it done


@needs_ray
@pytest.mark.slow
def test_an_actor_that_dies_is_replaced_and_a_run_that_hangs_fails_alone(place, undisturbed, on_ray):
    sweeps, options = on_ray
    said = sweeps.folder / "killed"
    kills = f"if limit == 2 and not Path({str(said)!r}).exists():\n    Path({str(said)!r}).write_text('x')\n"
    sweeps.trouble.write_text(f"{kills}    os.kill(os.getppid(), 9)\nif limit == 3: time.sleep(600)\n")
    code, events = sweeps.run(*options, "--time-limit", "15", "--workers", "1")
    assert (code, count(events, "done"), count(events, "retried"), count(events, "failed")) == (1, 2, 1, 1), events
    (error,) = [event["error"] for event in events if event["event"] == "failed"]
    assert "took longer than the limit of 15 s" in error
    assert "ActorDiedError" in next(event["error"] for event in events if event["event"] == "retried")
    clean(str(place))
    sweeps.trouble.unlink()
    sweeps.is_as(undisturbed, cached=2)


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_ended_leaves_no_actor_and_nothing_that_its_runs_forked(place, undisturbed, on_ray, how):
    sweeps, options = on_ray
    said = sweeps.folder / "raylet"
    sweeps.trouble.write_text(ONCE.format(said=str(said)))
    sweep_ = sweeps.start(*options)
    appears(said, sweep_)
    assert len(left(str(place))["started"]) >= 2
    sweep_.send_signal(how)
    code, events = sweeps.ended(sweep_)
    assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
    if how == signal.SIGINT:
        assert not any(left(str(place)).values()), "ended before the command was"
        assert "interrupted" in [event.get("event") for event in events]
    clean(str(place))
    sweeps.is_as(undisturbed)


@needs_ray
@pytest.mark.slow
def test_a_dry_run_on_a_cluster_names_the_same_keys_as_one_here_and_starts_nothing(place, undisturbed, on_ray):
    sweeps, options = on_ray
    code, jobs = sweeps.run(*options, "--dry-run")
    assert (code, [job["state"] for job in jobs]) == (0, ["new"] * 3), sweeps.said.read_text()
    assert {Path(job["folder"]).name for job in jobs} == undisturbed.keys()
    assert not sweeps.store.exists()
    clean(str(place))


@needs_ray
@pytest.mark.slow
def test_a_worker_that_does_not_see_the_store_ends_the_sweep_before_a_run(place, cluster, tmp_path, monkeypatch):
    cluster.mend()
    said = {"notebooks": [str(place / "small.ipynb")], "model": "toy", "limit": 1, "batch_tokens": 512}
    with sweep.crew("ray", 1, cluster.address, said) as crew, sweep.Events(tmp_path, 1) as events:
        jobs = sweep.jobs(said, tmp_path, plan=crew.plan)
        hire, sign = crew.hire, tmp_path / "sweeps" / "none"  # as if that node had another folder of that name
        monkeypatch.setattr(crew, "hire", lambda jobs, _: hire(jobs, sign))
        with pytest.raises(ClusterError, match="is not there, and it is where the sweep was started") as error:
            workers.run(jobs, tmp_path, events, crew)
    assert f"on node {socket.gethostname()}: {sign} is not there" in str(error.value)
    assert "mounts under the same path" in str(error.value)
    assert not jobs[0].folder.parent.exists()


@needs_ray
@pytest.mark.slow
def test_a_cluster_without_room_says_what_it_has_and_what_was_asked(cluster, on_ray):
    sweeps, options = on_ray
    code, told = sweeps.run(*options, "--workers", "3")
    assert code == 2
    assert "3 workers with 1 CPU each were asked for, and Ray's cluster has 3 nodes" in told[-1]["error"]
    assert "room for 2. Give at most so many as --workers" in told[-1]["error"]


@needs_ray
@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        ("127.0.0.1:1", 3, "nothing answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", 3, "nothing answers at ray://127.0.0.1:1"),
        ("here", 2, "address 'here': expected auto, HOST:PORT or ray://HOST:PORT"),
    ],
)
def test_an_address_where_no_cluster_is_is_refused_within_seconds(tmp_path, address, code, said):
    began = time.monotonic()
    command = ["sweep", "-n", "2_3_extraction", "--store", str(tmp_path), "--engine", "ray", "--address", address]
    run = CliRunner().invoke(cli.app, [*command, "--json"])
    assert run.exit_code == code
    assert said in json.loads(run.stdout)["error"]
    assert time.monotonic() - began < 20
    assert list(tmp_path.iterdir()) == []


def test_the_script_for_slurm_is_one():
    script = Path(__file__).parents[1] / "docs" / "slurm.sh"
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    assert "--engine ray" in script.read_text()


def test_without_ray_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    run = CliRunner().invoke(cli.app, ["sweep", "-n", "2_3_extraction", "--store", str(tmp_path), "--engine", "ray"])
    assert run.exit_code == 2
    assert "pip install 'anchorlens[ray]'" in run.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "dask"], "engine 'dask': there are local and ray"),
        (["--address", "auto"], "--address 'auto' is that of a Ray cluster: give --engine ray too"),
    ],
)
def test_an_engine_that_there_is_not_and_an_address_without_ray_are_refused(tmp_path, words, said):
    run = CliRunner().invoke(cli.app, ["sweep", "-n", "2_3_extraction", "--store", str(tmp_path), *words])
    assert run.exit_code == 2
    assert said in run.output


class Pretended:
    """A crew and its workers in one; a worker without a place says so each time that it is given a run."""

    def __init__(self, *placed: bool) -> None:
        self.workers, self.ended = [PretendedWorker(each) for each in placed], []

    def plan(self, notebook, given, root):
        raise NotImplementedError

    def hire(self, jobs, sign):
        return self.workers

    def close(self):
        self.ended.append("close")

    def end(self):
        self.ended.append("end")


class PretendedWorker:
    def __init__(self, placed: bool) -> None:
        self.placed, self.ran = placed, []

    def start(self, given, limit):
        self.ran.append(given[1]["limit"])
        future = Future()
        unplaced = {"status": "unplaced", "error": "no node had room"}
        future.set_result({"status": "done"} if self.placed else unplaced)
        return future

    def look(self, future):
        pass

    def outcome(self, future, limit):
        return future.result()

    def end(self):
        raise NotImplementedError


def of_three(root: Path) -> list[sweep.Job]:
    return [sweep.Job("x", {"limit": limit}, root / f"{limit}", "new") for limit in (1, 2, 3)]


def test_a_worker_without_a_place_gives_its_run_to_those_that_have_one(tmp_path):
    crew = Pretended(False, True)
    with sweep.Events(tmp_path, 3) as events:
        assert workers.run(of_three(tmp_path), tmp_path, events, crew)
    homeless, placed = crew.workers
    assert sorted(placed.ran) == [1, 2, 3]
    assert len(homeless.ran) <= 3, "asked again only after another's run"
    assert (sweep.status(tmp_path)["done"], crew.ended) == (3, ["close"])


def test_a_sweep_of_which_no_worker_has_a_place_ends_and_says_so(tmp_path):
    crew = Pretended(False, False)
    with sweep.Events(tmp_path, 3) as events, pytest.raises(workers.UnplacedError, match="no node had room"):
        workers.run(of_three(tmp_path), tmp_path, events, crew)
    assert (sweep.status(tmp_path)["state"], crew.ended) == ("interrupted", ["end"])


class SlowRay:
    """Stands in for Ray whose actors have places and never answer."""

    class exceptions:
        class RayError(Exception):
            pass

        class GetTimeoutError(RayError, TimeoutError):
            pass

    def remote(self, kind):
        self.where = self.work = SimpleNamespace(remote=lambda *given: None)
        self.options = lambda **said: SimpleNamespace(remote=lambda *given: self)
        return self

    def get(self, what, timeout=None):
        raise self.exceptions.GetTimeoutError

    def kill(self, actor):
        pass


def test_a_worker_that_starts_too_slowly_has_not_used_up_the_limit_of_its_run(monkeypatch):
    util = pytest.importorskip("ray.util")
    monkeypatch.setattr(util, "placement_group", lambda needs: SimpleNamespace(wait=lambda seconds: True))
    monkeypatch.setattr(util, "remove_placement_group", lambda place: None, raising=False)
    ray = SlowRay()
    ray.util = util
    worker = cluster_.Worker(ray, {"CPU": 1})
    said = worker.outcome(worker.start(("2_3_extraction", {}, "runs", {}), 9.0), 9.0)
    assert (said["kind"] in workers.DIED, said["error"]) == (True, "its worker did not start within 180 s")
    late = Future()
    late.set_exception(ray.exceptions.GetTimeoutError())
    assert "took longer than the limit of 9 s" in worker.outcome(late, 9.0)["error"]


class OneByOne:
    """Stands in for Ray, whose places and actors come when they are told to, and have numbers."""

    exceptions = SlowRay.exceptions

    def __init__(self, slow: str) -> None:
        self.slow, self.go, self.asked = slow, threading.Event(), threading.Event()
        self.numbers: dict[str, Iterator[int]] = {what: count_up(1) for what in ("place", "actor")}
        self.gone: set[tuple[str, int]] = set()
        self.util = SimpleNamespace(remove_placement_group=lambda place: self.gone.add(("place", place.number)))

    def held_up(self, what: str, number: int) -> None:
        if (what, number) == (self.slow, 1):
            self.asked.set()
            assert self.go.wait(20)

    def place(self, needs) -> SimpleNamespace:
        number = next(self.numbers["place"])

        def wait(seconds: float) -> bool:
            self.held_up("place", number)
            return True

        return SimpleNamespace(number=number, wait=wait)

    def remote(self, kind) -> SimpleNamespace:
        if kind is marks.end:
            return SimpleNamespace(options=lambda **said: SimpleNamespace(remote=lambda mark: None))
        return SimpleNamespace(options=lambda **said: SimpleNamespace(remote=self.actor))

    def actor(self, mark: str, needs) -> SimpleNamespace:
        number = next(self.numbers["actor"])
        where, work = (SimpleNamespace(remote=lambda *given, what=what: (what, number)) for what in ("where", "work"))
        return SimpleNamespace(number=number, where=where, work=work)

    def get(self, call: tuple[str, int], timeout=None) -> dict:
        what, number = call
        if what == "where":
            self.held_up("actor", number)
            return {"name": f"node of {number}", "id": "00"}
        return {"status": "done", "by": number}

    def kill(self, actor) -> None:
        self.gone.add(("actor", actor.number))


@pytest.mark.parametrize("slow", ["place", "actor"])
def test_a_worker_that_was_given_up_while_it_started_does_not_come_back_beside_its_successor(monkeypatch, slow):
    util = pytest.importorskip("ray.util")
    ray = OneByOne(slow)
    monkeypatch.setattr(util, "placement_group", ray.place)
    given = "2_3_extraction", {}, "runs", {}
    worker = cluster_.Worker(ray, {"CPU": 1})
    first = worker.start(given, 9.0)
    assert ray.asked.wait(20)
    worker.end()
    by = worker.start(given, 9.0).result(20)["by"]
    ray.go.set()
    with pytest.raises(cluster_.StartError, match="ended while it started"):
        first.result(20)
    assert worker._node["name"] == f"node of {by}"
    assert worker.start(given, 9.0).result(20)["by"] == by, "which is kept"
    assert ("actor", by) not in ray.gone
    made = {"place": next(ray.numbers["place"]) - 1, "actor": next(ray.numbers["actor"]) - 1}
    kept = {(what, n) for what in made for n in range(1, made[what] + 1)} - ray.gone
    assert sorted(what for what, _ in kept) == ["actor", "place"], "of the first nothing is left"


CPUS, CARDS = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("having", "gpus", "asked", "want"),
    [
        ([CPUS, CPUS], 0, 0, (2, 8)),  # a worker for each node
        ([{"CPU": 0.0}, CPUS, {"CPU": 2.0}], 0, 0, (2, 4)),  # none for a head without CPUs
        ([CPUS, CPUS], 0, 5, (5, 2)),
        ([CPUS, CARDS, CARDS], 1, 0, (8, 4)),  # a worker for each GPU
        ([CARDS], 2, 0, (2, 8)),
        ([{"CPU": 2.0, "GPU": 8.0}], 1, 2, (2, 1)),  # as many as there are CPUs for
    ],
)
def test_workers_share_a_cluster(having, gpus, asked, want):
    assert nodes.shares(having, gpus, asked) == want


@pytest.mark.parametrize(
    ("having", "gpus", "asked", "said"),
    [
        ([CPUS], 0, 9, "9 workers with 1 CPU each were asked for, and Ray's cluster has 1 nodes (8 CPU"),
        ([CPUS, CARDS], 1, 5, "5 workers with 1 CPU and 1 GPU each were asked for"),
        ([CARDS], 8, 0, "1 workers with 1 CPU and 8 GPU each were asked for"),
        ([], 0, 0, "and Ray's cluster has no node: room for 0"),
        ([{"CPU": 0.0}], 0, 0, "room for 0"),
    ],
)
def test_more_workers_than_a_cluster_has_room_for_are_refused(having, gpus, asked, said):
    with pytest.raises(ClusterError) as error:
        nodes.shares(having, gpus, asked)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("grid", "want"),
    [
        ({}, 1),
        ({"device": "cpu"}, 0),
        ({"device": ["cpu", "cuda"]}, 1),
        ({"device": "cuda:2"}, 3),
        ({"n_devices": [1, 4]}, 4),
        ({"device": "cpu", "only": {"2_2_isolation": {"device": "auto", "n_devices": 2}}}, 2),
    ],
)
def test_a_worker_has_as_many_gpus_as_some_run_wants(grid, want):
    assert nodes.gpus_of(grid) == want


def test_what_a_key_is_made_of_elsewhere_is_compared_before_a_run(tmp_path):
    given = {"model": "toy", "limit": 8, "batch_tokens": 4000}
    (job,) = sweep.jobs({"notebooks": "2_3_extraction", **given}, tmp_path)
    other = {**job.made_of, "code": "0" * 64, "inputs": {**job.made_of["inputs"], "device": "cuda"}}
    said = inside.work("2_3_extraction", given, str(tmp_path), other)
    assert (said["kind"], said["refused"]) == ("PlanError", True)
    assert "code was 0000" in said["error"]
    assert "device was cuda and is cpu" in said["error"]
    assert "cells" not in said["error"]
    assert list(tmp_path.iterdir()) == []
    assert batch.differing(job.made_of, job.made_of) == ""


@pytest.mark.parametrize("name", ["PlanError", "PlaceError"])
def test_a_run_that_was_refused_ends_a_sweep_and_a_notebooks_error_of_the_same_name_does_not(name):
    ended = Future(), Future()
    ended[0].set_result(inside.failed(name, "of the notebook"))
    ended[1].set_result(inside.refused(name, "of the node"))
    errors = SimpleNamespace(GetTimeoutError=TimeoutError, RayError=OSError)
    worker = cluster_.Worker(SimpleNamespace(exceptions=errors), {})
    assert worker.outcome(ended[0], 0.0)["error"] == "of the notebook"
    with pytest.raises(ClusterError, match="of the node"):
        worker.outcome(ended[1], 0.0)


def test_files_are_sent_by_whole_paths_and_names_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.csv", "toy", "sst2"):
        (tmp_path / name).touch()
    given = {"model": "toy", "task": "sst2", "data": "rows.csv", "pool": "hard", "limit": 3}
    named, sent, store = actor.sent("2_3_extraction", given, Path("runs"))
    assert (named, store) == ("2_3_extraction", str(tmp_path / "runs"))
    assert sent == {**given, "data": str(tmp_path / "rows.csv")}
    assert actor.files(sent) == [str(tmp_path / "rows.csv")]
    assert actor.missing([str(tmp_path / "rows.csv"), str(tmp_path / "none")], patience=0.0) == str(tmp_path / "none")


def test_what_bears_a_mark_ends_with_the_process_that_is_followed(tmp_path):
    code = (
        "import os, subprocess, sys, time\nfrom anchorlens.sweep import marks\nmarks.follow('of-this-test')\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True,\n"
        "    stdout=subprocess.DEVNULL, env={**os.environ, marks.NAME: 'of-this-test'})\n"
        "print(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.kill()
    parent.communicate()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_what_follows_a_process_that_goes_between_two_questions_still_ends_what_it_started(monkeypatch):
    def gone(self: psutil.Process) -> str:
        raise psutil.NoSuchProcess(self.pid)

    monkeypatch.setattr(psutil.Process, "status", gone)
    ended = []
    monkeypatch.setattr(marks.os, "fork", lambda: 0)
    monkeypatch.setattr(marks.os, "setsid", lambda: None)
    monkeypatch.setattr(marks, "end", ended.append)
    marks._following(psutil.Process(), "its mark")
    assert ended == ["its mark"]

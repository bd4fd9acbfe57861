"""Runs told to MLflow and W&B: each once, with its figures, and never at the cost of a run. Both stand in here."""

import importlib
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import anchorlens
from anchorlens import batch, cli, store, sweep, tracking
from anchorlens.sweep import events, nodes, workers
from anchorlens.tracking import entries

PARAMETERS = {"model": "toy", "seeds": [1, 2], "limit": 8, "twin": False, "label_words": "a|b", "learning_rate": 0.01}
FACTS = {
    "notebook": "2_2_isolation",
    "parameters": PARAMETERS,
    "device": "cpu",
    "dtype": "float32",
    "weights": "sha256 0",
    "started": "2026-01-01T00:00:00+00:00",
    "finished": "2026-01-01T00:01:00+00:00",
    "seconds": 60.5,
    "versions": {"torch": "2.13.0"},
}
ISOLATION = pd.DataFrame(
    {
        "example": [0, 1, 0, 1],
        "arm": ["label"] * 4,
        "mask": ["before"] * 4,
        "end": ["first"] * 4,
        "depth": [1, 1, 3, 3],
        "label_loyal": [True, False, True, True],
        "word_loyalty": [1.0, 0.5, 0.25, float("nan")],
    }
)


def finished(
    root: Path, key: str = "0123456789abcdef", notebook: str = "2_2_isolation", **tables: pd.DataFrame
) -> Path:
    """A run in the store."""
    run = store.Run(root / notebook / key)
    run.partial.mkdir(parents=True)
    for name, table in ({"results": ISOLATION} | tables).items():
        table.to_parquet(run.partial / f"{name}.parquet")
    (root / "plotly.min.js").write_text("/**\n* plotly.js v3.1.4\n*/")
    (run.partial / "figure.html").write_text('<script src="../../plotly.min.js"></script>')
    return run.finish({**FACTS, "key": key, "notebook": notebook, "status": "ok"})


class Mlflow:
    """Stands in for mlflow's modules: keeps what it is told."""

    def __init__(self, **_: Any) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.broken: Exception | None = None
        self.gate: threading.Event | None = None
        self.files: dict[str, str] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Mlflow":
        entities = types.ModuleType("mlflow.entities")
        for name, fields in {"Param": ("key", "value"), "Metric": ("key", "value", "timestamp", "step")}.items():
            made = lambda *given, fields=fields: SimpleNamespace(**dict(zip(fields, given, strict=True)))  # noqa: E731
            setattr(entities, name, made)
        root, client = types.ModuleType("mlflow"), types.ModuleType("mlflow.tracking")
        setattr(root, "get_tracking_uri", lambda: "http://me:secret@server")  # noqa: B010
        setattr(client, "MlflowClient", lambda tracking_uri=None: self)  # noqa: B010
        for module in (root, entities, client):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        if self.broken:
            raise self.broken
        return SimpleNamespace(experiment_id="7")

    def create_run(self, experiment_id: str, start_time: int, tags: dict[str, str], run_name: str) -> Any:
        if self.gate is not None:
            self.gate.wait(30)
        if self.broken:
            raise self.broken
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = {"name": run_name, "tags": tags, "started": start_time, "params": {}, "metrics": {}}
        self.runs[run_id] |= {"files": [], "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self.runs[run_id]["params"] |= {param.key: param.value for param in params}
        self.runs[run_id]["metrics"] |= {(metric.key, metric.step): metric.value for metric in metrics}

    def log_artifact(self, run_id: str, local_path: str) -> None:
        self.runs[run_id]["files"].append(Path(local_path).name)
        if local_path.endswith(".html"):
            self.files[Path(local_path).name] = Path(local_path).read_text()

    def set_terminated(self, run_id: str, status: str, end_time: int | None = None) -> None:
        self.runs[run_id] |= {"status": status, "ended": end_time}

    def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[Any]:
        return [
            run
            for run in self.runs.values()
            if f"'{run['tags']['manifest.key']}'" in filter_string and run["status"] == "FINISHED"
        ]


class Wandb(types.ModuleType):
    """Stands in for wandb."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, Any] = {}
        self.logged_in, self.ended = True, 0

    def login(self, prompt: bool) -> bool:
        assert not prompt, "nobody is there to answer"
        return self.logged_in

    def Settings(self, **said: Any) -> dict[str, Any]:
        return said

    def init(self, *, id: str, resume: str, reinit: str, **said: Any) -> Any:
        resumed = id in self.runs
        run = self.runs.setdefault(id, SimpleNamespace(summary={}, rows=[], axes={}, files=[], codes=[]))
        run.said, run.resumed = said, resumed
        run.define_metric = lambda name, step_metric=None, hidden=False: run.axes.update({name: step_metric})
        run.log = run.rows.append
        run.log_artifact = run.files.append
        run.finish = lambda exit_code: run.codes.append(exit_code)
        return run

    def Artifact(self, name: str, type: str) -> Any:
        names: list[str] = []
        return SimpleNamespace(name=name, names=names, add_file=lambda path: names.append(Path(path).name))

    def teardown(self) -> None:
        self.ended += 1


@pytest.fixture
def mlflow(monkeypatch) -> Mlflow:
    return Mlflow().install(monkeypatch)


@pytest.fixture
def wandb(monkeypatch) -> Wandb:
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    made = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What a sink sets for itself does not stay."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


def told(root: Path, happened: list[tuple[str, dict]], *names: str, given: dict | None = None) -> list[dict]:
    """The events of a sweep that is tracked."""
    tracker = tracking.Tracker(root, names, given or {})
    with sweep.Events(root, len(happened), as_json=True, watcher=tracker) as said:
        for event, more in happened:
            said.say(event, job=Path(more["folder"]).name, **more)
        said.say("finished", failed=0, left=0)
    return [json.loads(line) for line in said.path.read_text().splitlines()]


def test_a_run_is_told_with_parameters_facts_figures_and_files(tmp_path, mlflow):
    finished(tmp_path)
    tracking.log(tmp_path / "2_2_isolation" / "0123456789abcdef", "mlflow")
    (run,) = mlflow.runs.values()
    assert run["name"] == "2_2_isolation 0123456789abcdef"
    assert run["params"] == {
        "model": "toy",
        "seeds": "[1, 2]",
        "limit": "8",
        "twin": "false",
        "label_words": "a|b",
        "learning_rate": "0.01",
    }
    tags = run["tags"]
    assert (tags["manifest.device"], tags["manifest.seconds"], tags["manifest.versions.torch"]) == (
        "cpu",
        "60.5",
        "2.13.0",
    )
    assert (run["status"], run["ended"] - run["started"]) == ("FINISHED", 60_000)
    assert run["metrics"] == {
        ("label_loyal/label/before/first", 1): 0.5,
        ("label_loyal/label/before/first", 3): 1.0,
        ("word_loyalty/label/before/first", 1): 0.75,
        ("word_loyalty/label/before/first", 3): 0.25,
    }
    assert sorted(run["files"]) == ["figure.html", "manifest.json", "results.parquet"]
    assert mlflow.files["figure.html"] == '<script src="https://cdn.plot.ly/plotly-3.1.4.min.js"></script>'


def test_wandb_gets_a_series_along_the_layers_and_the_rest_as_a_summary(tmp_path, wandb):
    scores = pd.DataFrame({"seed": [1, 2], "arm": ["", ""], "accuracy": [0.5, 1.0], "macro_f1": [0.25, 0.75]})
    flow = pd.DataFrame({"layer": [0, 0, 1], "flow": ["S_wp", "S_wp", "S_wp"], "value": [1.0, 3.0, 5.0]})
    folder = finished(tmp_path, notebook="2_1_information_flow", results=flow, scores=scores)
    tracking.log(folder, "wandb")
    (run,) = wandb.runs.values()
    assert run.rows == [{"layer": 0, "S_wp": 2.0}, {"layer": 1, "S_wp": 5.0}]
    assert run.axes == {"layer": None, "S_wp": "layer"}
    assert run.summary == {"accuracy": 0.75, "macro_f1": 0.5, "state": "done"}
    assert run.said["config"]["manifest"]["key"] == "0123456789abcdef"
    assert {name: run.said["config"][name] for name in PARAMETERS} == PARAMETERS
    assert run.said["project"] == "anchorlens"
    assert [artifact.names for artifact in run.files] == [
        ["figure.html", "manifest.json", "results.parquet", "scores.parquet"]
    ]
    assert (run.codes, wandb.ended) == ([0], 1)
    tracking.log(folder, "wandb")
    assert len(run.rows) == 2, "what is there as done is not told again"


def test_numbers_of_a_notebook_of_ones_own_are_means_by_its_words(tmp_path):
    table = pd.DataFrame(
        {"arm": ["a", "a", "b"], "example": [0, 1, 0], "value": [1.0, 2.0, 4.0], "ok": [True, False, True]}
    ).assign(rank=[0.5, 0.5, float("nan")])
    folder = finished(tmp_path, notebook="mine", results=table)
    assert {metric.name: metric.value for metric in entries.headlines(folder, "mine")} == {
        "a": 1.5,
        "ok/a": 0.5,
        "b": 4.0,
        "ok/b": 1.0,
        "rank/a": 0.5,
    }


@pytest.mark.parametrize("notebook", entries.HEADLINES)
def test_every_headline_names_columns_that_its_notebook_writes(notebook):
    """As in the table of the README of what a run's folder holds."""
    columns = {
        "2_1_information_flow": {"layer", "flow", "value"},
        "2_2_isolation": {"arm", "mask", "end", "depth", "label_loyal", "word_loyalty"},
        "3_1_reweighting": {"arm", "correct"},
        "3_2_compression": {"arm", "positions", "label_loyal", "word_loyalty", "correct", "tokens_kept"},
    }
    for series in entries.HEADLINES[notebook]:
        if series.table == "results":
            assert {*series[1], *series.by, series.axis} - {""} <= columns[notebook]


def test_a_run_that_was_told_is_not_told_again_but_elsewhere_it_is(tmp_path, mlflow, monkeypatch):
    folder = finished(tmp_path)
    ended = [("cached", {"folder": str(folder)})]
    assert [told(tmp_path, ended, "mlflow")[-1]["untracked"] for _ in range(2)] == [0, 0]
    assert len(mlflow.runs) == 1
    (tmp_path / "sweeps" / tracking.RECORD).unlink()
    told(tmp_path, ended, "mlflow")
    assert len(mlflow.runs) == 1, "the server knows it"
    mlflow.runs.clear()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    told(tmp_path, ended, "mlflow")
    assert len(mlflow.runs) == 1, "another experiment has not been told"
    record = (tmp_path / "sweeps" / tracking.RECORD).read_text()
    assert "secret" not in record
    assert "//server#another" in record


def test_a_failed_run_is_told_as_failed_with_its_error_and_later_as_done(tmp_path, mlflow, wandb):
    folder = tmp_path / "2_2_isolation" / "0123456789abcdef"
    store.Run(folder).partial.mkdir(parents=True)
    (store.Run(folder).partial / "run.ipynb").write_text("{}")
    failed = ("failed", {"folder": str(folder), "error": "ZeroDivisionError: by zero", "seconds": 2.0})
    for _ in range(2):
        told(tmp_path, [failed], "mlflow", "wandb", given={str(folder): {"limit": 8}})
    (run,) = mlflow.runs.values()
    assert (run["status"], run["params"], run["files"]) == ("FAILED", {"limit": "8"}, ["run.ipynb"])
    assert run["tags"]["mlflow.note.content"] == run["tags"]["manifest.error"] == "ZeroDivisionError: by zero"
    assert run["ended"] - run["started"] == 2000
    assert wandb.runs[folder.name].codes == [1]
    assert wandb.runs[folder.name].summary["error"] == "ZeroDivisionError: by zero"
    (store.Run(folder).partial / "run.ipynb").unlink()
    store.Run(folder).partial.rmdir()
    finished(tmp_path)
    told(tmp_path, [("done", {"folder": str(folder)})], "mlflow", "wandb")
    assert sorted(run["status"] for run in mlflow.runs.values()) == ["FAILED", "FINISHED"]
    assert wandb.runs[folder.name].summary["state"] == "done"
    assert wandb.runs[folder.name].codes == [1, 0]
    failed[1]["error"] = "its result was damaged, and its model is gone"
    told(tmp_path, [failed], "mlflow")
    assert sorted(run["status"] for run in mlflow.runs.values()) == ["FAILED", "FAILED", "FINISHED"]


def test_a_server_that_goes_away_is_told_of_and_touches_nothing_else(tmp_path, mlflow, wandb):
    ended = [("cached", {"folder": str(finished(tmp_path, f"{n:016x}"))}) for n in range(5)]
    tracker = tracking.Tracker(tmp_path, ["mlflow", "wandb"], {})
    mlflow.broken = ConnectionError("refused\nat length")
    with sweep.Events(tmp_path, 5, as_json=True, watcher=tracker) as said:
        for event, more in ended:
            said.say(event, job=Path(more["folder"]).name, **more)
        said.say("finished", failed=0, left=0)
    happened = [json.loads(line) for line in said.path.read_text().splitlines()]
    missed = [each for each in happened if each["event"] == "untracked"]
    assert [each["sink"] for each in missed] == ["mlflow"] * 5
    assert missed[0]["error"].startswith(
        "ConnectionError: refused. The run itself is not touched; the same command with"
    )
    assert ["3 times in succession" in each["error"] for each in missed] == [False] * 3 + [True] * 2
    assert (happened[-1]["event"], happened[-1]["failed"], happened[-1]["untracked"]) == ("finished", 0, 5)
    assert len(wandb.runs) == 5, "the other one is told of all"
    stand = sweep.status(tmp_path)
    assert (stand["state"], stand["cached"], stand["failed"], len(stand["untracked"])) == ("finished", 5, 0, 5)
    mlflow.broken = None
    assert told(tmp_path, ended, "mlflow", "wandb")[-1]["untracked"] == 0
    assert len(mlflow.runs) == 5, "the same command tells them later"


def test_a_server_that_fails_now_and_then_is_asked_again(tmp_path, mlflow, monkeypatch):
    answers, make = iter("..+..+"), mlflow.create_run

    def now_and_then(*given: Any, **more: Any) -> Any:
        if next(answers) == ".":
            raise ConnectionError("refused")
        return make(*given, **more)

    monkeypatch.setattr(mlflow, "create_run", now_and_then)
    ended = [("cached", {"folder": str(finished(tmp_path, f"{n:016x}"))}) for n in range(6)]
    happened = told(tmp_path, ended, "mlflow")
    assert [Path(each["folder"]).name[-1] for each in happened if each["event"] == "untracked"] == ["0", "1", "3", "4"]
    assert len(mlflow.runs) == 2


def test_what_was_not_tracked_is_in_the_last_line(tmp_path, mlflow, capsys):
    tracker = tracking.Tracker(tmp_path, ["mlflow"], {})
    mlflow.broken = ConnectionError("refused")
    with sweep.Events(tmp_path, 1, watcher=tracker) as said:
        said.say("cached", job="a", folder=str(finished(tmp_path)))
        said.say("finished", failed=0, left=0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["begin", "[1/1] cached a"]
    assert lines[2].startswith("untracked a: ConnectionError: refused. ")
    assert lines[3] == "finished; 1 times a run was not tracked"
    assert lines[4:] == [f"of 1 runs 0 done, 1 cached, 0 failed. Results: {tmp_path}"]


def test_a_sweep_that_is_told_to_end_gives_a_sink_that_hangs_a_moment_more(tmp_path, mlflow, monkeypatch):
    monkeypatch.setattr(tracking, "HASTE", 0.2)
    mlflow.gate = threading.Event()
    tracker = tracking.Tracker(tmp_path, ["mlflow"], {})
    tracker.see(lambda event, **more: None, "cached", {"job": "a", "folder": str(finished(tmp_path))})
    with sweep.stoppable() as heed:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            tracker.finish(heed=heed)
    assert tracker.finish(hasty=True) == 1
    mlflow.gate.set()


def test_a_sweep_that_was_told_to_end_waits_no_longer_for_a_sink_that_is_slow(tmp_path, mlflow, monkeypatch):
    monkeypatch.setattr(tracking, "HASTE", 0.5)
    make = mlflow.create_run
    monkeypatch.setattr(mlflow, "create_run", lambda *given, **more: time.sleep(0.2) or make(*given, **more))
    tracker = tracking.Tracker(tmp_path, ["mlflow"], {})
    for n in range(40):
        tracker.see(lambda event, **more: None, "cached", {"job": "a", "folder": str(finished(tmp_path, f"{n:016x}"))})
    began = time.monotonic()
    assert tracker.finish(hasty=True) > 20
    assert time.monotonic() - began < 4, "also where each is told within its patience"


@pytest.mark.parametrize("hasty", [True, False])
def test_a_sink_that_does_not_close_is_not_waited_for(tmp_path, wandb, monkeypatch, hasty):
    hangs, asked = threading.Event(), []
    tracker = tracking.Tracker(tmp_path, ["wandb"], {})
    monkeypatch.setattr(wandb, "teardown", lambda: asked.append("close") or hangs.wait())
    folder = finished(tmp_path)
    told: list[str] = []
    tracker.see(lambda event, **more: told.append(event), "cached", {"job": "a", "folder": str(folder)})
    if not hasty:

        def heed() -> None:
            if asked:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tracker.finish(heed=heed)
    monkeypatch.setattr(tracking, "HASTE", 2.0)
    assert tracker.finish(hasty=True) == 0
    assert (asked, told) == (["close"], ["unclosed"]), "closed once, and it is said that it was not"
    hangs.set()


def test_a_sink_that_hangs_is_not_waited_for(tmp_path, mlflow, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE", 0.2)
    mlflow.gate = threading.Event()
    ended = [("cached", {"folder": str(finished(tmp_path, f"{n:016x}"))}) for n in range(2)]
    happened = told(tmp_path, ended, "mlflow")
    mlflow.gate.set()
    missed = [each["error"] for each in happened if each["event"] == "untracked"]
    assert len(missed) == 2
    assert all(each.startswith("it did not answer within 0.2 s") for each in missed)
    assert happened[-1] == {**happened[-1], "event": "finished", "untracked": 2}


def test_a_half_told_run_is_no_run_of_the_server(tmp_path, mlflow, monkeypatch):
    folder = finished(tmp_path)
    monkeypatch.setattr(mlflow, "log_artifact", lambda *given: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tracking.log(folder, "mlflow")
    monkeypatch.undo()
    Mlflow.install(mlflow, monkeypatch)
    tracking.log(folder, "mlflow")
    assert [run["status"] for run in mlflow.runs.values()] == ["KILLED", "FINISHED"]


def test_files_too_large_to_go_along_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "LIMIT", 2000)
    folder = finished(tmp_path)
    entry = entries.done(folder)
    assert "results.parquet" not in [path.name for path in entry.files]
    assert entry.facts["left_out"].startswith("results.parquet: more than 2000 bytes, so only in ")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mlfow", "no tracking sink 'mlfow': choose mlflow or wandb."),
        ("mlflow", "tracking with mlflow: it is not installed ("),
        ("wandb", "tracking with wandb: not logged in. Run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"),
    ],
)
def test_a_sink_that_cannot_be_used_is_refused_before_anything_starts(tmp_path, monkeypatch, wandb, name, said):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    wandb.logged_in = False
    words = ["-n", "2_3_extraction", "-p", "limit=8", "-p", "batch_tokens=512", "--store", str(tmp_path / "runs")]
    run = CliRunner().invoke(cli.app, ["sweep", *words, "--track", name])
    assert run.exit_code == 2
    assert f"TrackingError: {said}" in run.stderr
    assert name != "mlflow" or "pip install 'anchorlens[mlflow]', or leave --track mlflow out." in run.stderr
    assert not (tmp_path / "runs").exists()


def test_a_server_out_of_reach_is_refused_at_the_start(tmp_path, mlflow):
    mlflow.broken = ConnectionError("refused")
    with pytest.raises(tracking.TrackingError, match=r"server cannot be used \(ConnectionError: refused\)") as refused:
        tracking.Tracker(tmp_path, ["mlflow"], {})
    assert "secret" not in str(refused.value)


def test_a_mode_that_tracks_nothing_is_refused(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(tracking.TrackingError, match="WANDB_MODE=disabled tracks nothing"):
        tracking.Tracker(tmp_path, ["wandb"], {})
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.logged_in = False
    tracking.Tracker(tmp_path, ["wandb"], {}).finish()


def test_neither_is_imported_unasked(tmp_path):
    code = (
        "import sys\nfrom anchorlens.cli import main\ntry:\n    main()\nfinally:\n"
        "    print(sorted({'mlflow', 'wandb', 'anchorlens.tracking'} & set(sys.modules)))"
    )
    given = {"limit": 8, "batch_tokens": 512}
    planned = batch.plan("2_3_extraction", given, tmp_path)
    finished(tmp_path, planned.target.final.name, "2_3_extraction")
    words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
    command = [sys.executable, "-c", code, "sweep", "-n", "2_3_extraction", *words, "--store", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert "[1/1] cached 2_3_extraction" in run.stderr
    assert run.stdout.splitlines()[-1] == "[]"
    package = Path(anchorlens.__file__).parent
    named = {
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if "import wandb" in path.read_text()
    }
    assert named == set()
    asking = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(f'import_module("{name}' in path.read_text() for name in ("mlflow", "wandb"))
    }
    assert asking == {"tracking/sinks.py"}


def test_what_is_asked_of_the_real_wandb_is_what_it_takes(monkeypatch):
    real = pytest.importorskip("wandb")
    settings = {"silent", "console", "disable_git", "save_code", "x_disable_stats", "x_disable_meta"}
    settings |= {"x_disable_machine_info", "init_timeout", "finish_timeout"}
    assert settings <= set(real.Settings.model_fields)
    asked = {
        real.init: "project id name job_type config resume reinit settings",
        real.login: "prompt",
        real.Run.define_metric: "name step_metric hidden",
        real.Run.finish: "exit_code",
        real.Artifact: "name type",
        real.Artifact.add_file: "local_path",
    }
    for called, names in asked.items():
        assert set(names.split()) <= set(inspect.signature(called).parameters)
    assert isinstance(real.Run.resumed, property)


def test_what_is_asked_of_the_real_mlflow_is_what_it_takes(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    folder = finished(tmp_path)
    for _ in range(2):
        tracking.log(folder, "mlflow")
    client = importlib.import_module("mlflow.tracking").MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("anchorlens").experiment_id])
    assert (run.info.status, run.data.params["label_words"]) == ("FINISHED", "a|b")
    history = client.get_metric_history(run.info.run_id, "label_loyal/label/before/first")
    assert [(each.step, each.value) for each in history] == [(1, 0.5), (3, 1.0)]
    there = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert there == {"figure.html", "manifest.json", "results.parquet"}


def test_the_record_of_what_was_told_is_not_taken_for_a_sweep(tmp_path, mlflow):
    told(tmp_path, [("cached", {"folder": str(finished(tmp_path))})], "mlflow")
    assert (tmp_path / events.FOLDER / tracking.RECORD).is_file()
    assert sweep.status(tmp_path)["cached"] == 1


def test_a_damaged_record_is_told_again_as_far_as_it_is_damaged(tmp_path, mlflow):
    ended = [("cached", {"folder": str(finished(tmp_path))})]
    told(tmp_path, ended, "mlflow")
    record = tmp_path / "sweeps" / tracking.RECORD
    record.write_bytes(b"\xff\x00[1\n" + record.read_bytes())
    mlflow.runs.clear()
    told(tmp_path, ended, "mlflow")
    assert not mlflow.runs, "the whole line is read"


def test_what_could_not_be_tracked_is_on_stdout_with_ray_too(tmp_path, mlflow, capsys, monkeypatch):
    """Ray's own threads print into stderr, for which stdout is another one."""
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", nodes.OfMainThread(stdout))
    tracker = tracking.Tracker(tmp_path, ["mlflow"], {})
    mlflow.broken = ConnectionError("refused")
    with sweep.Events(tmp_path, 1, as_json=True, watcher=tracker) as events_:
        events_.say("cached", job="a", folder=str(finished(tmp_path)))
        events_.say("finished", failed=0, left=0)
    other = threading.Thread(target=print, args=("of another",))
    other.start()
    other.join()
    said = [json.loads(line)["event"] for line in stdout.getvalue().splitlines()]
    assert said == ["begin", "cached", "untracked", "finished"]
    assert capsys.readouterr().err == "of another\n"


def test_a_sweep_that_is_interrupted_while_it_waits_for_a_sink_says_so(tmp_path):
    class Slow:
        def __init__(self):
            self.hasty = []

        def see(self, say, event, more):
            pass

        def finish(self, *, hasty, heed=lambda: None):
            self.hasty.append(hasty)
            if not hasty:
                signal.raise_signal(signal.SIGTERM)
            heed()
            return 0

    class Nobody:
        def hire(self, jobs, sign):
            return []

        def close(self):
            pass

        def end(self):
            pass

        def plan(self, notebook, given, root):
            raise NotImplementedError

    slow = Slow()
    with (
        sweep.stoppable() as heed,
        sweep.Events(tmp_path, 0, as_json=True, watcher=slow, heed=heed) as said,
        pytest.raises(KeyboardInterrupt),
    ):
        workers.run([], tmp_path, said, Nobody())
    assert (slow.hasty, sweep.status(tmp_path)["state"]) == ([False, True], "interrupted")

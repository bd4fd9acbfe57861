"""Where runs can be told: MLflow and Weights & Biases, each imported when it is asked for, never before."""

import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

from anchorlens.tracking.entries import Entry, Metric

EXPERIMENT = "anchorlens"  # unless MLFLOW_EXPERIMENT_NAME or WANDB_PROJECT says otherwise
_LONGEST = 5000  # characters of a tag or a parameter; MLflow's limits are 8000 and 6000
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default a server that is gone is waited for for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "WANDB_ERROR_REPORTING": "false",
}  # set where the user has not


class TrackingError(ValueError):
    """A sink that cannot be used: unknown, not installed, not logged in, or out of reach."""


@runtime_checkable
class Sink(Protocol):
    """One place that runs are told to."""

    where: str  # for the record of what was told: another server or project has not been told yet

    def write(self, entry: Entry) -> None:
        """Tell of a run; of one that is known there as done nothing more."""
        ...

    def close(self) -> None:
        """End whatever was started for it."""
        ...


def sink(name: str) -> Sink:
    """The sink of that name, ready to write.

    Raises:
        TrackingError: if there is none, or it cannot be used as things are.
    """
    if name not in SINKS:
        raise TrackingError(f"no tracking sink {name!r}: choose {' or '.join(SINKS)}.")
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        return SINKS[name]()
    except ImportError as error:
        raise TrackingError(
            f"tracking with {name}: it is not installed ({error}). Install it with pip install 'anchorlens[{name}]', "
            f"or leave --track {name} out."
        ) from error


class Mlflow:
    """MLflow: a run each in one experiment; server and experiment by MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""

    def __init__(self) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        uri, name = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        shown = re.sub(r"//[^/]*@", "//", uri)  # without a password
        self.where = f"{shown}#{name}"
        try:
            self._client: Any = importlib.import_module("mlflow.tracking").MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(name)
            self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        except Exception as error:  # of whatever kind its stores raise
            raise TrackingError(
                f"tracking with mlflow: {shown} cannot be used ({first_line(error).replace(uri, shown)}). Start the "
                "server, or set MLFLOW_TRACKING_URI to one that runs or to a file (sqlite:///mlflow.db)."
            ) from error

    def write(self, entry: Entry) -> None:
        if entry.state == "done" and self._has(entry):
            return
        started, ended = round(entry.started * 1000), round(entry.finished * 1000)
        tags = {f"manifest.{name}": _short(value) for name, value in entry.facts.items()}
        tags |= {"mlflow.note.content": _short(entry.error)} if entry.error else {}
        made = self._client.create_run(self._experiment, start_time=started, tags=tags, run_name=entry.name)
        run = made.info.run_id
        try:
            params = [self._entities.Param(name, _short(value)) for name, value in entry.parameters.items()]
            metrics = [self._entities.Metric(_named(m.name), m.value, ended, m.step) for m in entry.metrics]
            for n in range(0, len(params), 100):
                self._client.log_batch(run, params=params[n : n + 100])
            for n in range(0, len(metrics), 1000):
                self._client.log_batch(run, metrics=metrics[n : n + 1000])
            with entry.portable() as paths:
                for path in paths:
                    self._client.log_artifact(run, str(path))
        except BaseException:
            with suppress(Exception):  # half told: a later try makes another
                self._client.set_terminated(run, "KILLED")
            raise
        self._client.set_terminated(run, "FINISHED" if entry.state == "done" else "FAILED", ended)

    def _has(self, entry: Entry) -> bool:
        wanted = f"tags.`manifest.key` = '{entry.key}' and attributes.status = 'FINISHED'"
        return bool(self._client.search_runs([self._experiment], filter_string=wanted, max_results=1))

    def close(self) -> None:
        pass


class Wandb:
    """Weights & Biases: a run each, known by its key; WANDB_PROJECT and WANDB_MODE=offline as anywhere."""

    def __init__(self) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        self._project, mode = os.environ.get("WANDB_PROJECT") or EXPERIMENT, os.environ.get("WANDB_MODE") or "online"
        if mode not in ("online", "offline"):
            raise TrackingError(
                f"tracking with wandb: WANDB_MODE={mode} tracks nothing. Set it to online or offline, or leave "
                "--track wandb out."
            )
        if mode == "online" and not self._wandb.login(prompt=False):
            raise TrackingError(
                "tracking with wandb: not logged in. Run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline to "
                "write into ./wandb and `wandb sync` later."
            )
        host = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
        self.where = f"{mode} {host} {os.environ.get('WANDB_ENTITY', '')}#{self._project}"

    def write(self, entry: Entry) -> None:
        settings = self._wandb.Settings(
            silent=True,
            console="off",  # what a sweep says is its own
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,  # whose machine it is, and where on it
            x_disable_machine_info=True,
            init_timeout=30,
            finish_timeout=60,
        )
        run = self._wandb.init(
            project=self._project,
            id=entry.key,
            name=entry.name,
            job_type=entry.notebook,
            config={**entry.parameters, "manifest": dict(entry.facts)},
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        whole = False
        try:
            if not (run.resumed and run.summary.get("state") == "done"):
                self._tell(run, entry)
            whole = entry.state == "done"
        finally:
            run.finish(exit_code=0 if whole else 1)

    def _tell(self, run: Any, entry: Entry) -> None:
        for name, axis in sorted({(metric.name, metric.axis) for metric in entry.metrics if metric.axis}):
            run.define_metric(axis, hidden=True)
            run.define_metric(name, step_metric=axis)
        for row in _rows(entry.metrics):
            run.log(row)
        for metric in entry.metrics:
            if not metric.axis:
                run.summary[metric.name] = metric.value
        with entry.portable() as paths:
            if paths:
                artifact = self._wandb.Artifact(f"run-{entry.key}", type="run")
                for path in paths:
                    artifact.add_file(str(path))
                run.log_artifact(artifact)
            if entry.error:
                run.summary["error"] = entry.error
            run.summary["state"] = entry.state

    def close(self) -> None:
        self._wandb.teardown()


SINKS = {"mlflow": Mlflow, "wandb": Wandb}


def _rows(metrics: Sequence[Metric]) -> Iterator[Mapping[str, float]]:
    """What is at one step of one axis, together."""
    rows: dict[tuple[str, int], dict[str, float]] = {}
    for metric in metrics:
        if metric.axis:
            rows.setdefault((metric.axis, metric.step), {metric.axis: metric.step})[metric.name] = metric.value
    return iter(rows[at] for at in sorted(rows))


def _named(name: str) -> str:
    """A name as MLflow allows it."""
    return re.sub(r"[^\w\-. /:=]", "_", name).replace("=", "-")


def _short(value: Any) -> str:
    """A string as it was given, any other value as JSON; the manifest, which goes along, has it whole."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:500]

"""Rows of a data set on the Hugging Face hub, or of what ``datasets`` keeps of it on this machine.

``owner/name:config@revision#split`` names one; what follows the name may be left out.
"""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anchorlens import formats
from anchorlens.formats import Named, Record, Split
from anchorlens.hub import hub_reachable
from anchorlens.tasks import HubRows, MissingRowsError, Task, TaskError

_ID = re.compile(
    r"(?P<dataset>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[^@#:/]+))?(@(?P<revision>[^@#]+))?(#(?P<split>[\w.-]+))?", re.ASCII
)
_FILES = re.compile(r"\.(csv|tsv|jsonl?|parquet|gz|zip|ya?ml|txt|xlsx?)$", re.IGNORECASE)
_FOR: dict[Split, str] = {"query": "queries", "demonstration": "demonstrations"}
_REMEDY = "Give files with data=FILE and pool=FILE (the same file will do), or connect once to fetch them."


def parse(name: str, task: Task) -> HubRows | None:
    """The rows that a hub id names, for ``task``; None for what cannot be one.

    Columns and class names are the task's; those of its own rows on the hub where ``name`` is that very data set.
    """
    found = _ID.fullmatch(name)
    if not found or _FILES.search(found["dataset"]):
        return None
    own = task.hub if task.hub and task.hub.dataset == found["dataset"] else None
    names = task.names or (task.hub.names if task.hub else {})
    splits = dict(own.splits) if own else {}
    if found["split"]:
        splits = dict.fromkeys(map(str, formats.SPLITS), found["split"])
    return HubRows(
        found["dataset"],
        splits,
        own.text if own else task.text,
        own.label if own else task.label,
        names,
        found["revision"] or (own.revision if own else None),
        found["config"] or (own.config if own else None),
    )


def describe(hub: HubRows, split: Split) -> str:
    """How errors, and ``anchorlens list tasks``, call it."""
    config, revision = f":{hub.config}" if hub.config else "", f"@{hub.revision}" if hub.revision else ""
    return f"{hub.dataset}{config}{revision}" + (f"#{hub.splits[split]}" if split in hub.splits else "")


def fingerprint(hub: HubRows, task: Task, split: Split) -> str:
    """What identifies the rows: data set, configuration, split and commit, on the hub or of what is kept of it here.

    Raises:
        MissingRowsError: if the hub does not have them, or cannot be reached while they are not here.
    """
    config, commit = hub.config or "default", _commit(hub)
    if not commit:
        folder = _kept(hub, task, split)
        config, commit = folder.parent.parent.name, folder.name
    return f"hub {hub.dataset} {config} {hub.splits.get(split, 'by purpose')} commit {commit}"


def records(hub: HubRows, task: Task, split: Split) -> Iterator[Record]:
    """Place, text and label of each row; a class is a ``Named`` wherever the task says what the data set calls it.

    Raises:
        MissingRowsError: as ``fingerprint``.
        TaskError: for a configuration, split or column that is not there.
    """
    for place, text, label in _records(hub, task, split):
        known = bool(hub.names) and isinstance(label, int | str)
        yield place, text, Named(label) if known else label


def _records(hub: HubRows, task: Task, split: Split) -> Iterator[Record]:
    if commit := _commit(hub):
        return _fetched(hub, split, commit)
    folder = _kept(hub, task, split)  # read as it is: without a network, the clients would retry for half a minute
    info = formats.read_json(folder / "dataset_info.json")
    name = _split(list(info.get("splits") or {}), hub, split)
    shard = re.compile(rf"-{re.escape(name)}(-\d+-of-\d+)?$")
    files = [path for path in sorted(folder.glob("*.arrow")) if shard.search(path.stem)]
    if not files:
        raise MissingRowsError(f"{folder}: no rows of split {name!r} are left there. {_REMEDY}")
    return formats.arrow_records(files, info.get("features"), hub.text, hub.label, describe(hub, split))


def _split(there: list[str], hub: HubRows, split: Split) -> str:
    remedy = f"Write data={hub.dataset}#SPLIT or pool={hub.dataset}#SPLIT."
    name = hub.splits.get(split) or formats.pick(there, split, hub.dataset, remedy)
    if name not in there:
        raise TaskError(f"{hub.dataset}: no split {name!r}; it has {', '.join(there) or 'none'}. {remedy}")
    return name


def _commit(hub: HubRows) -> str:
    """The commit on the hub; empty if it cannot be reached."""
    if not hub_reachable():
        return ""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return HfApi().dataset_info(hub.dataset, revision=hub.revision, timeout=10).sha or ""
    except GatedRepoError as error:
        raise MissingRowsError(
            f"data set {hub.dataset!r} is gated: accept its terms on its hub page, then set HF_TOKEN or run "
            "`hf auth login`."
        ) from error
    except HFValidationError as error:
        raise MissingRowsError(f"{hub.dataset!r} is no file here and cannot be a hub id: {error}") from error
    except RevisionNotFoundError as error:
        raise MissingRowsError(
            f"data set {hub.dataset!r} has no revision {hub.revision!r}; leave it out for the newest."
        ) from error
    except RepositoryNotFoundError as error:
        raise MissingRowsError(
            f"the hub has no data set {hub.dataset!r} (or it is private and needs HF_TOKEN), and there is no such file."
        ) from error
    except (HTTPError, OSError):  # then what is kept here decides
        return ""


def _kept(hub: HubRows, task: Task, split: Split) -> Path:
    """The folder in the cache of ``datasets`` that holds it, by the pinned commit or the newest one."""
    from huggingface_hub.constants import HF_HOME

    cache = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets"))
    owner, name = hub.dataset.split("/")
    name = re.sub(r"([a-z\d])([A-Z])", r"\1_\2", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)).lower()
    pinned = hub.revision if hub.revision and re.fullmatch(r"[\da-f]{40}", hub.revision) else "*"
    config = glob.escape(hub.config) if hub.config else "*"
    held = (cache / f"{owner}___{name}").glob(f"{config}/*/{pinned}/dataset_info.json")
    whole = [path.parent for path in held if not path.parent.name.endswith(".incomplete")]
    folders = sorted(whole, key=lambda folder: folder.stat().st_mtime)
    own = task.hub is not None and (task.hub.dataset, task.hub.revision) == (hub.dataset, hub.revision)
    if not folders:
        missing = (
            f"rows of task {task.name!r} for {_FOR[split]} ({hub.dataset} on the hub) are not on this machine"
            if own
            else f"{hub.dataset!r} is no file here; as a data set of the hub it is not on this machine either"
        )
        raise MissingRowsError(f"{missing}, and the hub cannot be reached. {_REMEDY}")
    if len(configs := sorted({folder.parent.parent.name for folder in folders})) > 1:
        raise TaskError(
            f"{hub.dataset}: several configurations are on this machine, {', '.join(configs)}; write "
            f"{hub.dataset}:{configs[0]}, or another of them."
        )
    if hub.revision and pinned == "*" and not own:
        raise MissingRowsError(
            f"{hub.dataset}: without a network it cannot be told which commit {hub.revision!r} is; on this machine is "
            f"{folders[-1].name}: write {hub.dataset}@{folders[-1].name}, or connect."
        )
    return folders[-1]


def _fetched(hub: HubRows, split: Split, commit: str) -> Iterator[Record]:
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    try:
        found: Any = datasets.load_dataset(hub.dataset, hub.config, revision=commit)
    except (OSError, HTTPError) as error:
        raise MissingRowsError(
            f"rows of {hub.dataset} could not be fetched ({type(error).__name__}: {error}). {_REMEDY}"
        ) from error
    except (ValueError, RuntimeError, DatasetsError) as error:
        raise TaskError(
            f"{hub.dataset} cannot be loaded: {error} (a configuration is written {hub.dataset}:CONFIG)"
        ) from error
    table, where = found[_split(list(found), hub, split)], describe(hub, split)
    formats.check_columns(table.column_names, hub.text, hub.label, where)
    names = getattr(table.features[hub.label], "names", None)
    for row, (text, label) in enumerate(zip(table[hub.text], table[hub.label], strict=True)):
        yield f"row {row}", text, formats.named(label, names, f"{where}, row {row}")

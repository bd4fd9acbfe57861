"""The Hugging Face hub: whether it answers, what of it this machine holds, and fetching; nothing waits without end."""

import contextlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from anchorlens import folders
from anchorlens.folders import IncompleteModelError, MissingModelError, ModelError

PATIENCE = 1.2  # seconds to wait for the hub before calling it unreachable
ANSWER = 10  # seconds for one answer of a hub that was reached
_NOT_THE_HUB = (407, 502, 503, 504)  # what a proxy answers in its place
_ON = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class Offer:
    """What the hub has of a model: its commit, and bytes that a run would fetch."""

    commit: str
    nbytes: int


def forbidden() -> bool:
    """Whether the environment says that the hub must not be asked (``HF_HUB_OFFLINE``)."""
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in _ON


def endpoint() -> str:
    """The address of the hub."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def hub_reachable() -> bool:
    """Whether the hub answers within ``PATIENCE`` seconds (name look-up included)."""
    if forbidden():
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint(), method="HEAD"), timeout=PATIENCE).close()
            answered.set()
        except urllib.error.HTTPError as error:
            if error.code not in _NOT_THE_HUB:
                answered.set()
        except (OSError, ValueError, HTTPException):
            pass

    thread = threading.Thread(target=ask, daemon=True)  # a look-up that hangs cannot be timed out in any other way
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()


def find(name: str, revision: str, *, fetch: bool, remote_code: bool) -> Path:
    """The folder of a hub model on this machine, fetched first where it is not there and ``fetch``.

    Raises:
        ModelError: for a name that is none, or a model that cannot be analysed.
        MissingModelError: for what is not held while the hub cannot be reached, or does not give it.
    """
    folder, lacks = held_folder(name, revision), ""
    if folder is not None:
        try:
            folders.check(name, folder, remote_code=remote_code)
            return folder
        except IncompleteModelError as error:  # an interrupted download leaves some files out: fetch them
            lacks = f" What is held is not whole ({str(error).removeprefix(f'model {name!r}: ').rstrip('.')})."
    if not fetch:
        raise MissingModelError(f"model {name!r} is not on this machine.{_others(name, revision)}{lacks}")
    if not hub_reachable():
        near = " For the shipped model write 'toy'." if name.startswith("to") else ""
        asked = f" at revision {revision!r}" if revision else ""
        raise MissingModelError(
            f"model {name!r}{asked} is not on this machine (no such folder, not in the hub cache), and the hub cannot "
            f"be reached. Connect to the network, or give a folder that holds the model."
            f"{lacks}{_others(name, revision)}{near}"
        )
    return _fetch(name, revision, remote_code=remote_code)


def held_folder(name: str, revision: str = "") -> Path | None:
    """Where the hub's cache has the model's config at ``revision`` (branch, tag or commit); None: nowhere.

    Raises:
        ModelError: for a name that the hub would never give.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision or None)
    except HFValidationError as error:
        raise ModelError(f"model {name!r} is no folder and cannot be a hub id: {error}") from error
    return Path(config).parent if isinstance(config, str) else None


def held(name: str) -> dict[str, str]:
    """Revisions of a model that this machine holds: branch, tag or commit, and its commit."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    commits = {path.name for path in (cache / "snapshots").glob("*") if path.is_dir()}
    refs = cache / "refs"
    named = {
        path.relative_to(refs).as_posix(): path.read_text().strip()
        for path in sorted(refs.rglob("*"))
        if path.is_file()
    }
    named = {ref: commit for ref, commit in named.items() if commit in commits}
    return named | {commit: commit for commit in sorted(commits - set(named.values()))}


def _others(name: str, revision: str) -> str:
    """What else is held of a model of which one revision is not."""
    found = {ref: commit for ref, commit in held(name).items() if ref != (revision or "main")}
    said = ", ".join(ref if ref == commit else f"{ref} ({commit})" for ref, commit in found.items())
    return f" Held of it: {said}; give one with revision=." if found else ""


def offer(name: str, revision: str = "", *, remote_code: bool = False) -> Offer:
    """What the hub, which must have been reached, would send of a model; only its list of files is asked for.

    Raises:
        MissingModelError: for a model that it does not have, or does not give.
    """
    from huggingface_hub import HfApi

    with _in_words(name, revision):
        info = HfApi().model_info(name, revision=revision or None, timeout=ANSWER, files_metadata=True)
        siblings = {each.rfilename: each.size or 0 for each in info.siblings or []}
        return Offer(info.sha or "", sum(siblings[file] for file in _wanted([*siblings], remote_code)))


def _fetch(name: str, revision: str, *, remote_code: bool) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    with _in_words(name, revision):
        info = HfApi().model_info(name, revision=revision or None, timeout=ANSWER)
        files = _wanted([sibling.rfilename for sibling in info.siblings or []], remote_code)
        # by the name asked for, so that the cache knows it offline
        asked = {"repo_id": name, "revision": revision or None}
        for file in (*folders.CONFIGS, *folders.SIGNS):  # first, so that weights are fetched only where they are of use
            if file in files:
                folder = Path(hf_hub_download(filename=file, **asked)).parent
        if "config.json" in files or "adapter_config.json" in files:
            folders.check_config(name, folder, remote_code=remote_code)
        folder = Path(snapshot_download(allow_patterns=files, **asked))
    folders.check(name, folder, remote_code=remote_code)
    return folder


def _wanted(files: list[str], remote_code: bool) -> list[str]:
    """Of a repository's files those that a run needs; code only where it may be run."""
    top = [file for file in files if "/" not in file]
    weights = [file for file in top if file.endswith(".safetensors")] or [f for f in top if f.endswith(".bin")]
    kind = weights[0].rsplit(".", 1)[-1] if weights else ""
    texts = [file for file in top if file.endswith((".json", ".txt", ".model", ".tiktoken")) and "index" not in file]
    texts += [file for file in top if kind and file.endswith(f".{kind}.index.json")]
    return weights + texts + [file for file in files if remote_code and file.endswith(".py")]


@contextlib.contextmanager
def _in_words(name: str, revision: str) -> Iterator[None]:
    from huggingface_hub import errors

    asked = f" at revision {revision!r}" if revision else ""
    lost = [getattr(errors, each) for each in ("RevisionResolutionError", "XetDownloadError") if hasattr(errors, each)]
    try:
        yield
    except errors.GatedRepoError as error:
        more = "; the one that is set belongs to none" if has_token() else ""
        raise MissingModelError(
            f"model {name!r} is gated: accept its licence on its hub page, then set HF_TOKEN or run `hf auth login` "
            f"(a token of an account that was let in is needed{more})."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MissingModelError(
            f"model {name!r} has no revision {revision!r}; leave it empty for the newest.{_others(name, revision)}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        token = " or the token that is set may not see it" if has_token() else ""
        raise MissingModelError(
            f"the hub has no model {name!r} (or it is private and needs HF_TOKEN{token}); check its spelling."
        ) from error
    except (errors.HTTPError, OSError, *lost) as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            token = "the token that is set does not open it" if has_token() else "set HF_TOKEN or run `hf auth login`"
            raise MissingModelError(
                f"the hub refuses model {name!r}{asked}, which is private or not there: {token}; check its spelling."
            ) from error
        raise MissingModelError(
            f"model {name!r}{asked} could not be fetched: {type(error).__name__}: {error}\n"
            "Run it again: files that arrived whole are kept."
        ) from error


def has_token() -> bool:
    """Whether a token for the hub is set, in the environment or by ``hf auth login``."""
    from huggingface_hub import get_token

    return get_token() is not None

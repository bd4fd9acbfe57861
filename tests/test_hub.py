"""What the hub refuses is said in words, what it never answers is given up, and what was held is found without it."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from anchorlens import hub, preflight
from anchorlens.hub import held, hub_reachable

TINY = Path(__file__).parent / "fixtures" / "gpt2-tiny"
COMMIT = "c0ffee" + "0" * 34
NEEDED = {path.name: path.read_bytes() for path in TINY.iterdir()}
UNNEEDED = ("flax_model.msgpack", "pytorch_model.bin", "onnx/config.json", "README.md", "modeling_own.py")
FILES = NEEDED | dict.fromkeys(UNNEEDED, b"large")
CODED = json.dumps(json.loads(NEEDED["config.json"]) | {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}})
CONFIGS = {"coded": CODED.encode(), "encoder": b'{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'}
LARGE = "model.safetensors"


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub: one model, and owners that stand for the errors it can give."""

    fetched: list[str]
    ranges: list[str]
    cuts: list[int]  # bytes after which the next answers with weights are cut off

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def log_message(self, format, *args):
        pass

    def _answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].removeprefix("/api/models").strip("/").split("/")
        owner, name, *rest = [*parts, "", ""]
        if owner == "broken":
            return  # hangs up without a word
        if owner == "stalls":
            time.sleep(30)
        elif owner == "error":
            self._send(body, code=500)
        elif owner == "gated" and (rest[0] == "resolve" or name == "closed"):
            self._send(body, code=403 if self.headers.get("Authorization") else 401, error="GatedRepo")
        elif owner == "private":
            self._send(body, code=401)
        elif owner not in ("", "tiny", "gated", *CONFIGS):
            self._send(body, code=404, error="RepoNotFound")
        elif rest[0] == "revision" and rest[1] not in ("main", "v1", COMMIT):
            self._send(body, code=404, error="RevisionNotFound")
        elif rest[0] == "tree":
            files = {file: self._content(owner, file) for file in FILES}
            tree = [
                {"type": "file", "path": file, "size": len(data), "oid": _sha1(data)} for file, data in files.items()
            ]
            self._send(body, json.dumps(tree).encode())
        elif rest[0] == "resolve":
            self._file(body, owner, "/".join(rest[2:]).strip("/"))
        else:
            siblings = [{"rfilename": file, "size": len(FILES[file])} for file in FILES]
            self._send(body, json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}).encode())

    def _content(self, owner: str, file: str) -> bytes:
        return CONFIGS.get(owner, FILES[file]) if file == "config.json" else FILES[file]

    def _file(self, body: bool, owner: str, file: str) -> None:
        data, start = self._content(owner, file), 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            self.ranges.append(asked[0])
        self.fetched += [file] if body else []
        cut = self.cuts.pop(0) if body and file == LARGE and self.cuts else None
        self._send(body, data, etag=_sha1(data), start=start, cut=cut)

    def _send(
        self,
        body: bool,
        data: bytes = b"",
        *,
        code: int = 200,
        error: str = "",
        etag: str = "",
        start: int = 0,
        cut: int | None = None,
    ) -> None:
        self.send_response(206 if start else code)
        headers = {"X-Error-Code": error, "ETag": etag and f'"{etag}"', "X-Repo-Commit": COMMIT}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        for name, value in {**headers, "Content-Length": str(len(data) - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[start:][:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Asking:
    """Calls ``locate`` in a new process that knows only the stand-in hub."""

    def __init__(self, port: int, home: Path, handler: type[Hub]) -> None:
        self.port, self.home, self.handler = port, home, handler

    def __call__(self, name: str, revision: str = "", *, offline: bool = False, **more: str) -> list[str]:
        code = (
            "import sys\nfrom anchorlens import preflight\nfrom huggingface_hub import constants\n"
            "constants.DOWNLOAD_CHUNK_SIZE = 500\n"  # of which only whole ones are kept
            "try:\n    found = preflight.locate(sys.argv[1], sys.argv[2], remote_code=sys.argv[3] == 'True')\n"
            "    print(found.revision, found.folder, found.fingerprint(), sep='\\n')\n"
            "except preflight.ModelError as error:\n    print(type(error).__name__, error, sep='\\n')\n"
            "assert 'torch' not in sys.modules"
        )
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{self.port}", "HF_HOME": str(self.home)}
        environment["HF_HUB_OFFLINE"] = "1" if offline else "0"
        command = [sys.executable, "-c", code, name, revision, more.pop("remote_code", "False")]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-800:]
        return done.stdout.splitlines()


@pytest.fixture
def asking(tmp_path) -> Iterator[Asking]:
    handler = type("Handler", (Hub,), {"fetched": [], "ranges": [], "cuts": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Asking(server.server_port, tmp_path / "home", handler)
    server.shutdown()
    server.socket.close()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_never_answers_is_given_up_within_two_seconds(monkeypatch):
    with silent() as address:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", address)
        started = time.monotonic()
        assert not hub_reachable()
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\0"])
def test_what_speaks_no_http_is_no_hub(monkeypatch, answer):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            connection, _ = server.accept()
            connection.sendall(answer)
            connection.close()

        threading.Thread(target=speak, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub_reachable() is answer.startswith(b"HTTP")


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_hub_that_must_not_be_asked_is_not_asked(monkeypatch, name):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *given, **named: pytest.fail("it was asked"))
    monkeypatch.setenv(name, "1")
    assert not hub_reachable()


def test_a_model_that_is_held_is_found_though_the_hub_never_answers(asking):
    first = asking("tiny/model")
    with silent() as address:
        started = time.monotonic()
        assert asking("tiny/model", HF_ENDPOINT=address) == first
        kind, message = asking("tiny/other", HF_ENDPOINT=address)
        assert time.monotonic() - started < 6, "two processes that start, and one wait"
    assert kind == "MissingModelError"
    assert "the hub cannot be reached" in message


def test_a_model_of_the_hub_is_fetched_without_what_is_not_needed(asking):
    revision, folder, fingerprint = asking("tiny/model")
    assert (revision, fingerprint) == (COMMIT, f"commit {COMMIT}")
    assert sorted(asking.handler.fetched) == sorted(NEEDED)
    assert (Path(folder) / LARGE).read_bytes() == NEEDED[LARGE]


@pytest.mark.parametrize("revision", ["", "v1", COMMIT])
def test_a_model_that_was_fetched_once_is_found_again_without_a_network(asking, revision):
    assert asking("tiny/model", revision, offline=True)[0] == "MissingModelError"
    first = asking("tiny/model", revision)
    assert asking("tiny/model", revision, offline=True) == first


def test_a_revision_that_is_not_held_is_refused_with_those_that_are(asking):
    asking("tiny/model", "v1")
    for revision in ("", "v2"):
        kind, message = asking("tiny/model", revision, offline=True)
        assert kind == "MissingModelError"
        assert f"Held of it: v1 ({COMMIT}); give one with revision=." in message
    assert "at revision 'v2' is not on this machine" in message


def test_a_download_that_is_cut_off_goes_on_where_it_was(asking):
    asking.handler.cuts += [1000, 500]
    folder = Path(asking("tiny/model")[1])
    assert asking.handler.ranges == ["bytes=1000-", "bytes=1500-"]
    assert (folder / LARGE).read_bytes() == NEEDED[LARGE]


def test_a_model_that_is_held_in_part_is_fetched_whole_or_said_to_be_partly_there(asking):
    folder = Path(asking("tiny/model")[1])
    (folder / LARGE).resolve().unlink()
    (folder / LARGE).unlink()
    kind, message = asking("tiny/model", offline=True)
    assert kind == "MissingModelError"
    assert "What is held is not whole (the folder has no weights" in message
    asking.handler.fetched.clear()
    assert Path(asking("tiny/model")[1], LARGE).read_bytes() == NEEDED[LARGE]
    assert asking.handler.fetched == [LARGE], "files that arrived whole are kept"


def test_code_is_fetched_only_where_it_was_asked_for_and_weights_not_before(asking):
    kind, message = asking("coded/model")
    assert kind == "ModelError"
    assert "comes with code of its own (config.json names modeling_own.py" in message
    assert not {LARGE, "modeling_own.py"} & set(asking.handler.fetched)
    folder = Path(asking("coded/model", remote_code="True")[1])
    assert (folder / "modeling_own.py").read_bytes() == FILES["modeling_own.py"]


def test_the_weights_of_an_encoder_are_not_fetched(asking):
    kind, message = asking("encoder/model")
    assert (kind, "BertForMaskedLM" in message) == ("ModelError", True)
    assert LARGE not in asking.handler.fetched


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("nobody/nothing", "", "the hub has no model 'nobody/nothing' (or it is private and needs HF_TOKEN)"),
        ("private/model", "", "the hub refuses model 'private/model', which is private or not there: set HF_TOKEN"),
        ("gated/closed", "", "is gated: accept its licence on its hub page, then set HF_TOKEN"),
        ("gated/files-only", "", "is gated: accept its licence on its hub page, then set HF_TOKEN"),
        ("tiny/model", "v9", "has no revision 'v9'; leave it empty for the newest"),
        ("error/model", "", "could not be fetched"),
        ("broken/model", "", "could not be fetched"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(asking, name, revision, said):
    kind, *message = asking(name, revision)
    assert kind == "MissingModelError"
    assert said in message[0]
    assert asking.handler.fetched == []


def test_a_token_that_does_not_open_a_gated_model_is_told_from_none(asking):
    assert "(a token of an account that was let in is needed)" in asking("gated/closed")[1]
    assert (
        "(a token of an account that was let in is needed; the one that is set"
        in asking("gated/closed", HF_TOKEN="hf_x")[1]
    )


def test_a_hub_that_stops_answering_after_the_first_word_is_given_up(asking):
    started = time.monotonic()
    kind, message, *_ = asking("stalls/model")
    assert kind == "MissingModelError"
    assert "could not be fetched" in message
    assert time.monotonic() - started < hub.ANSWER + 8


def test_revisions_held_are_branches_tags_and_commits(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--owner--name"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(TINY, cache / "snapshots" / commit)
    for ref, commit in {"main": "a" * 40, "refs/pr/1": "a" * 40, "gone": "c" * 40}.items():
        (cache / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (cache / "refs" / ref).write_text(commit)
    assert held("owner/name") == {"main": "a" * 40, "refs/pr/1": "a" * 40, "b" * 40: "b" * 40}
    for revision, commit in {"": "a", "main": "a", "refs/pr/1": "a", "b" * 40: "b"}.items():
        found = preflight.locate("owner/name", revision)
        assert (found.folder.name, found.fingerprint()) == (commit * 40, f"commit {commit * 40}")

"""Code that comes with a model is run only where that was asked for; and loading a folder never asks the hub."""

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES

from anchorlens import models, parameters, preflight
from anchorlens.preflight import ModelError

MARK = "it_was_run"
CODE = f"""\
import sys
from transformers import GPT2LMHeadModel
sys.{MARK} = True
class Own(GPT2LMHeadModel):
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A model whose config has code of its own run, which leaves a mark."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, MARK, False, raising=False)
    folder = Path(shutil.copytree(FIXTURES / "gpt2-tiny", tmp_path / "model"))
    described = json.loads((folder / "config.json").read_text())
    described["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "modeling_own.py").write_text(CODE)
    return folder


def test_a_model_with_code_of_its_own_is_loaded_where_that_was_asked_for(folder):
    models.load(str(folder), remote_code=True)
    assert getattr(sys, MARK)


@pytest.mark.parametrize("random_seed", [None, 0])
def test_without_asking_none_of_it_is_run(folder, random_seed):
    with pytest.raises(ModelError, match=r"modeling_own\.py.* give remote_code=true"):
        models.load(str(folder), random_seed=random_seed)
    assert not getattr(sys, MARK)


def test_whether_code_may_be_run_is_part_of_the_key():
    path = parameters.find("2_3_extraction")
    keys = [
        parameters.content(path, given, parameters.examine(given, path))
        for given in (parameters.check(path, {"remote_code": asked}) for asked in (False, True))
    ]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_loading_a_folder_asks_no_hub(backend, monkeypatch):
    if backend not in preflight.resolve_backend("auto"):
        pytest.skip("this transformer-lens has no such backend")
    from huggingface_hub import constants

    asked = []

    def connect(self: socket.socket, address: object) -> None:
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # nothing but good manners keeps it from asking
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *named, **more: asked.append(named) or [])
    models.load(str(FIXTURES / "gptj-tiny" if backend == "hooked" else FIXTURES / "gpt2-tiny"), backend=backend)
    assert asked == []

"""Names of models, devices and dtypes are judged before torch is imported, and without waiting for a network."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from anchorlens import preflight
from anchorlens.preflight import Checkpoint, MissingModelError, ModelError, locate

TINY = Path(__file__).parent / "fixtures" / "gpt2-tiny"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of a small model that a test may damage."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


@pytest.mark.parametrize("name", preflight.TOYS)
def test_every_toy_is_found_with_config_weights_and_tokenizer(name):
    found = locate(name)
    assert found.toy
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in found.folder.iterdir()}


def test_the_random_toy_is_the_toy_with_weights_drawn_from_a_seed():
    assert locate("toy-random").folder == locate("toy").folder
    assert locate("toy-random").random_seed == preflight.TOY_SEED
    assert locate("toy").random_seed is None


def test_a_folder_is_taken_as_it_is(folder):
    assert locate(str(folder)) == Checkpoint(str(folder), folder)
    assert not locate(str(folder)).toy


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["config.json"], "no config.json; give a folder saved by save_pretrained"),
        (["model.safetensors"], "no weights (*.safetensors or pytorch_model*.bin)"),
        (["tokenizer.json", "vocab.json"], "no tokenizer (none of tokenizer.json"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_with_the_name_of_the_part(folder, missing, said):
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(ModelError) as refused:
        locate(str(folder))
    assert said in str(refused.value)
    assert repr(str(folder)) in str(refused.value)
    assert not isinstance(refused.value, MissingModelError)


def test_a_model_that_does_not_predict_the_next_token_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(ModelError, match="is a BertForMaskedLM; only decoders that predict the next token"):
        locate(str(folder))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_cannot_be_read_is_refused_as_a_model(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        locate(str(folder))


def test_a_file_is_no_model(folder):
    with pytest.raises(ModelError, match=r"expected a folder with config\.json, weights and tokenizer, found a file"):
        locate(str(folder / "config.json"))


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere-at-all", "{tmp}/nowhere", "one/two/three"])
def test_a_path_that_is_not_there_counts_as_missing(tmp_path, name):
    with pytest.raises(MissingModelError, match="found nothing there"):
        locate(name.format(tmp=tmp_path))


@pytest.mark.parametrize("name", ["gpt2--xl", "gpt2-", "модель", "x" * 100], ids=range(4))
def test_a_name_that_the_hub_would_never_give_is_refused_as_a_model(name):
    with pytest.raises(ModelError):
        locate(name)


def test_without_a_network_a_hub_id_fails_at_once_and_says_what_to_do():
    started = time.monotonic()
    with pytest.raises(
        MissingModelError, match=r"the hub cannot be reached\. Connect to the network, or give a folder"
    ):
        locate("no-such-owner/no-such-model")
    assert time.monotonic() - started < 2


def test_a_misspelt_toy_is_told_of_the_toy():
    with pytest.raises(MissingModelError, match="For the shipped model write 'toy'"):
        locate("toyy")


def test_where_nothing_may_be_fetched_a_hub_id_is_simply_not_here():
    with pytest.raises(MissingModelError, match=r"model 'gpt2-xl' is not on this machine\.$"):
        locate("gpt2-xl", fetch=False)


def test_devices_and_dtypes_mean_what_they_say(monkeypatch):
    monkeypatch.setattr(preflight, "cuda_devices", lambda: 0)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert [preflight.resolve_device(name) for name in ("auto", "cpu", "mps")] == ["cpu", "cpu", "mps"]
    assert [preflight.resolve_dtype(name) for name in ("auto", "bfloat16")] == ["float32", "bfloat16"]
    monkeypatch.setattr(preflight, "cuda_devices", lambda: 2)
    assert [preflight.resolve_device(name) for name in ("auto", "cpu", "cuda:1")] == ["cuda", "cpu", "cuda:1"]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: preflight.resolve_device("gpu"), "device='gpu': it may be 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'"),
        (
            lambda: preflight.resolve_device("cuda:1"),
            "device='cuda:1': this machine, or this build of torch, has no such",
        ),
        (lambda: preflight.resolve_device("mps"), "device='mps': only Apple machines have one"),
        (lambda: preflight.resolve_dtype("int8"), "dtype='int8': it may be 'auto', 'float32', 'float64'"),
        (lambda: preflight.resolve_backend("nnsight"), "backend='nnsight': it may be 'auto', 'hooked' or 'bridge'"),
    ],
)
def test_a_device_dtype_or_backend_that_cannot_be_had_is_refused(monkeypatch, ask, said):
    monkeypatch.setattr(preflight, "cuda_devices", lambda: 1)
    with pytest.raises(ModelError) as refused:
        ask()
    assert said in str(refused.value)


def test_cuda_is_judged_without_torch_as_torch_judges_it():
    code = "import sys; from anchorlens import preflight; print(preflight.cuda_devices(), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.split() == [str(torch.cuda.device_count()), "False"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_one_changed_byte_of_a_model_changes_its_fingerprint(folder, name):
    before = locate(str(folder)).fingerprint()
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    assert Checkpoint(str(folder), folder).fingerprint() != before


def test_large_weights_are_told_apart_by_size_and_by_bytes_at_either_end(folder, monkeypatch):
    monkeypatch.setattr(preflight, "_SMALL", 2**20)
    weights, seen = folder / "model.safetensors", set()
    content = weights.read_bytes()
    changed = [content, content + b"\0", b"\1" + content[1:], content[:-1] + b"\1"]
    for each in changed:
        weights.write_bytes(each)
        seen.add(Checkpoint(str(folder), folder).fingerprint())
    assert len(seen) == len(changed)


def test_a_fingerprint_does_not_depend_on_the_folder_s_name_or_other_files(folder):
    (folder / "README.md").write_text("about it")
    assert locate(str(folder)).fingerprint() == locate(str(TINY)).fingerprint()


def test_a_random_twin_has_a_fingerprint_of_its_own():
    prints = {Checkpoint("x", TINY, random_seed=seed).fingerprint() for seed in (None, 0, 1)}
    assert len(prints) == 3


def test_a_hub_model_is_known_by_its_commit():
    assert Checkpoint("gpt2", Path("nowhere"), revision="abc").fingerprint() == "commit abc"
    assert Checkpoint("gpt2", Path("nowhere"), revision="abc", random_seed=0).fingerprint() == "commit abc random 0"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("preflight", "torch transformer_lens transformers pandas"),
        ("parameters", "torch transformer_lens transformers pandas papermill"),
        ("tasks", "torch transformer_lens transformers pandas"),
        ("rows", "torch transformer_lens transformers pandas datasets"),
        ("store", "torch transformer_lens transformers"),
        ("cli", "torch transformer_lens transformers pandas papermill"),
    ],
)
def test_importing_what_preflight_needs_is_cheap(module, heavy):
    code = f"import sys, anchorlens.{module}; print(*sorted(set({heavy.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "model '': give a Hugging Face folder"),
        ("x" * 5000, "can be no path .*File name too long"),
    ],
)
def test_names_that_can_be_no_path_are_bad_input(name, said):
    with pytest.raises(preflight.ModelError, match=said):
        preflight.locate(name)

"""A model that cannot be analysed is refused by its config files, before torch is imported or any of it is run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anchorlens import preflight
from anchorlens.decoders import why_not
from anchorlens.folders import IncompleteModelError, MissingModelError, ModelError

TINY = Path(__file__).parent / "fixtures" / "gpt2-tiny"
BOTH_WAYS = "attend in both directions"
OTHERWISE = "carries information by other ways than attention"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of a small model that a test may damage."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def edit(folder: Path, file: str = "config.json", **changes: object) -> None:
    """Write ``changes`` into a config file, which is made where it is not there."""
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))


def config(name: str, kind: str, **more: object) -> dict[str, object]:
    return {"architectures": [name], "model_type": kind, **more}


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (config("BertForMaskedLM", "bert"), BOTH_WAYS),
        (config("BertLMHeadModel", "bert", is_decoder=False), BOTH_WAYS),
        (config("BertLMHeadModel", "bert"), BOTH_WAYS),  # not a decoder unless it says so
        (config("RobertaForCausalLM", "roberta"), BOTH_WAYS),
        (config("ElectraForPreTraining", "electra"), BOTH_WAYS),
        (config("ModernBertForMaskedLM", "modernbert"), BOTH_WAYS),
        (config("XLNetLMHeadModel", "xlnet"), BOTH_WAYS),
        (config("MadeUpForMaskedLM", "made-up"), BOTH_WAYS),
        ({"model_type": "bert"}, BOTH_WAYS),
        ({"architectures": ["BertForMaskedLM"]}, BOTH_WAYS),
        (config("Gemma3TextModel", "gemma3_text", use_bidirectional_attention=True), BOTH_WAYS),
        (config("T5ForConditionalGeneration", "t5", is_encoder_decoder=True), "an encoder with a decoder"),
        (config("BartForConditionalGeneration", "bart"), "an encoder with a decoder"),
        (config("MarianMTModel", "marian", is_encoder_decoder=True), "an encoder with a decoder"),
        ({"model_type": "t5"}, "an encoder with a decoder"),
        (config("ViTForImageClassification", "vit"), "images or sound"),
        (config("WhisperForConditionalGeneration", "whisper"), "images or sound"),
        (config("CLIPModel", "clip"), "images or sound"),
        (config("LlavaForConditionalGeneration", "made-up", vision_config={}), "Save its text decoder alone"),
        (config("MambaForCausalLM", "mamba"), OTHERWISE),
        (config("RwkvForCausalLM", "rwkv"), OTHERWISE),
        (config("JambaForCausalLM", "jamba"), OTHERWISE),
        (config("NewForCausalLM", "new-one", layer_types=["full_attention", "conv"]), f"{OTHERWISE} (conv)"),
        (config("GPT2ForSequenceClassification", "gpt2"), "a classifier or reward model"),
        (config("LlamaForRewardModel", "llama"), "a classifier or reward model"),
        (config("LlamaForTokenClassification", "llama"), "another head"),
        (config("GPT2DoubleHeadsModel", "gpt2"), "another head"),
        (config("MistralModel", "mistral"), "a body alone, or one that embeds texts"),
        (config("LlamaForCausalLM", "llama", quantization_config={"quant_method": "gptq"}), "is quantised (gptq)"),
        (config("LlamaForCausalLM", "llama", quantization_config={"quant_method": "awq"}), "is quantised (awq)"),
        (config("LlamaForCausalLM", "llama", quantization_config={"load_in_4bit": True}), "quantised (bitsandbytes)"),
        (config("LlamaForCausalLM", "llama", quantization_config="?"), "is quantised (quantization_config in its"),
        ({"hidden_size": 4}, "neither architectures nor model_type"),
        ({"architectures": "GPT2LMHeadModel"}, "expected a list of names"),
        ({"architectures": [7], "model_type": "gpt2"}, "expected a list of names"),
        ({"model_type": ["gpt2"]}, "and model_type ['gpt2']"),
    ],
    ids=lambda value: value if isinstance(value, str) else str((value.get("architectures") or [None])[0]),
)
def test_what_is_no_decoder_with_attention_is_refused_with_the_reason(folder, described, said):
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(ModelError) as refused:
        preflight.locate(str(folder))
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"model {str(folder)!r} ")
    assert not isinstance(refused.value, IncompleteModelError | MissingModelError), "so the exit code is 2"
    assert refused.value.args[0].rstrip().endswith("."), "it ends with what to do"


@pytest.mark.parametrize(
    "described",
    [
        config("GPT2LMHeadModel", "gpt2"),
        config("GPTJForCausalLM", "gptj", is_encoder_decoder=False, is_decoder=False),
        config("Gemma2ForCausalLM", "gemma2", layer_types=["sliding_attention", "full_attention"]),
        config("GPTNeoForCausalLM", "gpt_neo", attention_layers=["global", "local"]),
        config("GraniteMoeHybridForCausalLM", "granitemoehybrid", layer_types=["attention"]),
        config("BertLMHeadModel", "bert", is_decoder=True),
        config("BartForCausalLM", "bart", is_encoder_decoder=False, is_decoder=True),
        config("ModernBertDecoderForCausalLM", "modernbert-decoder"),
        config("ChatGLMModel", "chatglm", auto_map={"AutoModelForCausalLM": "modeling.ChatGLMModel"}),
        config("LlamaForCausalLM", "llama", quantization_config=None),
        {"model_type": "gpt2"},
        {"architectures": ["OPTForCausalLM"]},
    ],
    ids=lambda value: str((value.get("architectures") or ["unnamed"])[0]),
)
def test_decoders_pass(described):
    assert why_not(described) is None


def test_every_kind_is_refused_without_weights_since_no_download_may_come_first(folder):
    (folder / "model.safetensors").unlink()
    edit(folder, architectures=["BertForMaskedLM"])
    with pytest.raises(ModelError, match=BOTH_WAYS):
        preflight.locate(str(folder))


def test_an_adapter_is_to_be_merged_first(folder):
    edit(folder, "adapter_config.json", base_model_name_or_path="gpt2")
    for file in (None, "config.json"):  # beside a whole model too: transformers would load the base from the hub
        if file:
            (folder / file).unlink()
        with pytest.raises(ModelError, match=r"holds an adapter .* to 'gpt2'.* Merge the adapter first"):
            preflight.locate(str(folder))


def test_gguf_is_refused_as_folder_and_as_file(folder):
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    (folder / "model.Q4.gguf").write_bytes(b"GGUF")
    for name in (folder, folder / "model.Q4.gguf"):
        with pytest.raises(ModelError, match=r"GGUF, a format of llama\.cpp .* Give the Hugging Face checkpoint"):
            preflight.locate(str(name))


def test_a_file_beside_the_config_tells_of_quantisation_too(folder):
    edit(folder, "quantize_config.json", bits=4)
    with pytest.raises(ModelError, match=r"is quantised \(quantize_config\.json\)"):
        preflight.locate(str(folder))


def test_weights_in_other_formats_are_named(folder):
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(IncompleteModelError, match=r"no weights .*; tf_model\.h5 cannot be read, convert it"):
        preflight.locate(str(folder))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda whole: whole[:-1], "is cut short: "),
        (lambda whole: whole[:100], "is cut short or no safetensors file (100 bytes)"),
        (lambda whole: b"", "is cut short or no safetensors file (0 bytes)"),
        (lambda whole: whole[:8] + b"\0" + whole[9:], "has a header that cannot be read"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ],
)
def test_weights_that_are_not_whole_are_seen_without_reading_them(folder, content, said):
    path = folder / "model.safetensors"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(IncompleteModelError) as refused:
        preflight.locate(str(folder))
    assert f"model.safetensors {said}" in str(refused.value)


def test_a_shard_that_an_index_names_must_be_there(folder):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    edit(folder, "model.safetensors.index.json", **index)
    with pytest.raises(IncompleteModelError, match=r"the folder lacks model-2\.safetensors, which its index names"):
        preflight.locate(str(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("named", ["modeling_x.X", ["modeling_x.Slow", None], ["modeling_x.Slow", "modeling_x.Fast"]])
def test_code_that_a_model_brings_is_refused_unless_asked_for(folder, file, named):
    edit(folder, file, auto_map={"AutoModelForCausalLM": named})
    (folder / "modeling_x.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ModelError) as refused:
        preflight.locate(str(folder))
    assert f"comes with code of its own ({file} names modeling_x.py, by auto_map)" in str(refused.value)
    assert "give remote_code=true; or delete auto_map there" in str(refused.value)
    assert preflight.locate(str(folder), remote_code=True).folder == folder


def test_code_that_was_asked_for_must_be_there(folder):
    edit(folder, auto_map={"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"})
    (folder / "modeling_x.py").touch()
    with pytest.raises(IncompleteModelError, match=r"lacks configuration_x\.py, which auto_map names"):
        preflight.locate(str(folder), remote_code=True)


@pytest.mark.parametrize("remote_code", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_code_of_another_repository_is_refused_even_if_asked_for(folder, remote_code, copied):
    """transformers takes it from there, or from its cache, also where the folder has a file of that name."""
    edit(folder, auto_map={"AutoModelForCausalLM": "owner/other--modeling_x.X"})
    if copied:
        (folder / "modeling_x.py").touch()
    with pytest.raises(ModelError, match=r"code of another repository, 'owner/other'.* Copy its modeling_x\.py"):
        preflight.locate(str(folder), remote_code=remote_code)


def test_another_code_makes_another_fingerprint(folder):
    edit(folder, auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    prints = set()
    for text in ("a = 1", "a = 2"):
        (folder / "modeling_x.py").write_text(text)
        prints.add(preflight.locate(str(folder), remote_code=True).fingerprint())
    assert len(prints) == 2


def test_refusing_imports_no_torch(folder):
    edit(folder, architectures=["MambaForCausalLM"], model_type="mamba")
    code = (
        "import sys; from anchorlens import preflight\n"
        "try:\n    preflight.locate(sys.argv[1])\n"
        "except preflight.ModelError:\n    print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr

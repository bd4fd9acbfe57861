"""Whether a config.json describes a decoder with attention in every layer, which is all that can be analysed here."""

import re
from collections.abc import Mapping
from typing import Any


def _types(names: str) -> frozenset[str]:
    """Model types, as transformers calls them."""
    return frozenset(names.split())


_ENCODERS = _types(
    "albert bert big_bird camembert canine convbert data2vec-text deberta deberta-v2 distilbert electra "
    "ernie ernie_m esm esmc eurobert flaubert fnet funnel gte ibert jina_embeddings_v3 layoutlm "
    "layoutlmv2 layoutlmv3 longformer luke markuplm megatron-bert mobilebert modernbert mpnet mra new "
    "nezha nomic_bert nystromformer perceiver qdqbert rembert roberta roberta-prelayernorm roc_bert "
    "roformer splinter squeezebert tapas xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso"
)
_TO_SEQUENCES = _types(
    "bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100 marian "
    "mbart mt5 mvp nllb-moe pegasus pegasus_x plbart prophetnet seamless_m4t seamless_m4t_v2 "
    "switch_transformers t5 t5gemma t5gemma2 umt5 xlm-prophetnet"
)
_RECURRENT = _types(
    "bailing_hybrid bamba falcon_h1 falcon_mamba granitemoehybrid hyenadna jamba kimi_linear lfm2 "
    "lfm2_moe lfm3 mamba mamba2 minimax nemotron_h olmo_hybrid qwen3_next qwen3_5 qwen3_5_moe "
    "qwen3_5_moe_text qwen3_5_text recurrent_gemma retnet rwkv rwkv5 rwkv6 rwkv7 stripedhyena xlstm zamba "
    "zamba2 zaya"
)
_NOT_TEXT = _types(
    "align altclip audio-spectrogram-transformer beit bit blip blip-2 chinese_clip clap clip clipseg "
    "convnext convnextv2 data2vec-audio data2vec-vision deit detr dinov2 dinov3_vit dpt efficientnet "
    "encodec fuyu git hubert idefics idefics2 idefics3 llava llava_next mllama musicgen owlvit paligemma "
    "pix2struct resnet sam segformer siglip siglip2 speech-encoder-decoder speecht5 swin trocr vilt "
    "vision-encoder-decoder vit vit_mae vits wav2vec2 wav2vec2-bert wavlm whisper"
)
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "attention", "global", "local"}  # in layers
_CAUSAL = ("CausalLM", "LMHeadModel")
_DECODER = "Give a decoder that predicts the next token, such as gpt2-xl or a Llama."


def why_not(config: Mapping[str, Any]) -> str | None:
    """Why the model of a Hugging Face ``config.json`` cannot be analysed, as what follows its name; None: it can."""
    names, kind = config.get("architectures") or [], config.get("model_type") or ""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not isinstance(kind, str):
        return (
            f"has a config.json with architectures {names!r} and model_type {kind!r}; expected a list of names and one "
            "name. Mend it, or save the model anew with save_pretrained."
        )
    if not names and not kind:
        return (
            "has a config.json with neither architectures nor model_type, so nothing says what it is; give a folder "
            "saved by save_pretrained."
        )
    name = names[0] if names else kind
    why = _other_than_decoder(config, name, kind) or _without_attention(config, kind) or _other_head(config, name)
    if why:
        an = "an" if name[:1] in "AEIOaeio" else "a"
        return f"is {an} {name}; only decoders that predict the next token can be analysed, and {why}"
    return _quantised(config)


def _other_than_decoder(config: Mapping[str, Any], name: str, kind: str) -> str | None:
    causal = name.endswith(_CAUSAL)
    if config.get("is_encoder_decoder") or (
        kind in _TO_SEQUENCES and not (causal and config.get("is_encoder_decoder") is False)
    ):
        return f"this is an encoder with a decoder, which reads the prompt in both directions. {_DECODER}"
    if kind in _NOT_TEXT or re.search(r"Image|Vision|Audio|Speech|CTC$|Video|Object|Segment|Depth", name):
        return f"this one reads or makes images or sound. {_DECODER}"
    if "vision_config" in config or "audio_config" in config:
        return "this one reads images or sound as well. Save its text decoder alone (its ...ForCausalLM) and give that."
    if name.endswith("MaskedLM") or (kind in _ENCODERS and not (causal and config.get("is_decoder") is True)):
        return f"this is an encoder, whose tokens attend in both directions. {_DECODER}"
    if config.get("use_bidirectional_attention") is True or config.get("is_causal") is False:
        return f"in this one tokens attend in both directions, as its config.json says. {_DECODER}"
    return None


def _without_attention(config: Mapping[str, Any], kind: str) -> str | None:
    layers = config.get("layer_types") or config.get("layers_block_type")
    others = sorted({str(each) for each in layers} - _ATTENTION) if isinstance(layers, list) else []
    if not others and (layers or kind not in _RECURRENT):
        return None
    said = f" ({', '.join(others)})" if others else ""
    return (
        f"this one carries information by other ways than attention{said}, while what is analysed here are attention "
        "patterns. Give a transformer."
    )


def _other_head(config: Mapping[str, Any], name: str) -> str | None:
    if name.endswith(_CAUSAL) or not config.get("architectures"):
        return None
    if isinstance(config.get("auto_map"), Mapping) and "AutoModelForCausalLM" in config["auto_map"]:
        return None
    if re.search(r"Reward|ForSequenceClassification$|Score", name):
        return (
            "this one scores or classifies whole texts (a classifier or reward model): it has no output over words, by "
            "which label words are answered. Give the language model that it was trained from."
        )
    if name.endswith(("TokenClassification", "QuestionAnswering", "MultipleChoice", "DoubleHeadsModel")):
        return "this one has another head than one over the next word. Give the language model it was trained from."
    if name.endswith("ForConditionalGeneration"):
        return f"this one generates from something else than text alone. {_DECODER}"
    return (
        "this one has no output over the next word (a body alone, or one that embeds texts). Save the whole language "
        "model, as AutoModelForCausalLM loads it."
    )


def _quantised(config: Mapping[str, Any]) -> str | None:
    how = config.get("quantization_config") or config.get("compression_config")
    if not how:
        return None
    method = how.get("quant_method") if isinstance(how, Mapping) else None
    if method is None and isinstance(how, Mapping):
        method = "bitsandbytes" if how.get("load_in_4bit") or how.get("load_in_8bit") else None
    said = method or "quantization_config in its config.json"
    return (
        f"is quantised ({said}): its matrices are stored in few bits and unpacked while it runs, which transformer-lens"
        " cannot hook exactly. Give the checkpoint in float32, float16 or bfloat16 that it was made from; with "
        "dtype=bfloat16 it takes half the memory."
    )

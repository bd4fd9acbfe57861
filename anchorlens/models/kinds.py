"""What kind of positions and windows a model has, and what can therefore be done with it exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anchorlens.hooks import SettingError
from anchorlens.preflight import ModelError

_STRETCHED = ("dynamic", "longrope")  # rotations that change with the length of the prompt


class ArchitectureError(ModelError):
    """An architecture that a backend does not know."""


@dataclass(frozen=True)
class Kind:
    """How a model tells positions apart.

    Attributes:
        name: Hugging Face's name of the architecture (``model_type``).
        positions: "standard" (learned), "rotary", "alibi", or whatever else transformer-lens calls them.
        window: how far back the narrowest layer looks; None: to the beginning.
        steady: tokens up to which rotations do not depend on the prompt's length; None: they never do.
        scaled: how rotations are stretched beyond the length of training; empty: not at all.
    """

    name: str
    positions: str
    window: int | None = None
    steady: int | None = None
    scaled: str = ""

    def pads_exactly(self, length: int) -> bool:
        """Whether padding or leaving out tokens between others changes nothing in prompts of ``length`` tokens.

        Alibi counts what lies between, and so does a window that does not hold the whole prompt.
        """
        return self.positions in ("standard", "rotary") and (self.window is None or length <= self.window)

    def check_keeping(self, model: str, length: int) -> None:
        """Refuse to keep some tokens alone where that is not exact in prompts of ``length`` tokens.

        Raises:
            SettingError: names the model's kind of positions, and the window.
        """
        if self.pads_exactly(length):
            return
        if self.positions in ("standard", "rotary"):
            raise SettingError(
                f"model {model!r} has local attention (the last {self.window} tokens), and prompts have up to "
                f"{length}: keeping some tokens alone is exact only where the window holds the whole prompt. Take "
                "fewer shots or shorter texts."
            )
        raise SettingError(
            f"model {model!r} has positions of kind {self.positions!r}: keeping some tokens alone is exact for learned "
            "and rotary positions only. Take another model for this analysis."
        )


def kind_of(config: Any, positions: str) -> Kind:
    """The kind that a Hugging Face config describes; ``positions`` as transformer-lens calls them."""
    text = config.get_text_config()
    rotary = getattr(text, "rope_parameters", None) or {}
    kinds = {each.get("rope_type") for each in (rotary, *rotary.values()) if isinstance(each, Mapping)}
    steady = None
    if kinds & set(_STRETCHED):
        steady = rotary.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", text.max_position_embeddings
        )
    scaled = ", ".join(sorted(str(each) for each in kinds - {None, "default", "proportional"}))
    return Kind(text.model_type, positions, window_of(text), steady, scaled)


def length_of(config: Any) -> int | None:
    """The longest prompt that a model can read, as its Hugging Face config says; None: it does not."""
    for name in ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"):
        if found := getattr(config, name, None):
            return found
    return None  # alibi: as far as memory goes


def window_of(config: Any) -> int | None:
    """How many tokens, itself included, a token of the narrowest layer attends to; None: all before it."""
    local = getattr(config, "attention_layers", None)  # GPT-Neo
    if local is not None:
        return config.window_size if "local" in local else None
    kinds = getattr(config, "layer_types", None)
    if kinds and "chunked_attention" in kinds:
        return config.attention_chunk_size
    if kinds:
        return config.sliding_window if "sliding_attention" in kinds else None
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None

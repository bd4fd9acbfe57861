"""The toy's network in plain torch, for training; it is shipped and used as a Hugging Face GPT-NeoX folder."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

ROTARY, ROTARY_BASE = 8, 100.0  # rotary dimensions of each head's 16, and their base


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    context: int
    layers: int = 8
    width: int = 64
    heads: int = 4


class Block(nn.Module):
    """Pre-norm attention and MLP, one after the other; in training each may be dropped, token by token."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, x: Float[Tensor, "batch pos width"], turn: Float[Tensor, "2 pos rotary"], drop: float
    ) -> Float[Tensor, "batch pos width"]:
        batch, pos, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, pos, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(_rotated(q, turn), _rotated(k, turn), v, is_causal=True)
        x = x + _kept(x, drop) * self.out(mixed.transpose(1, 2).reshape(batch, pos, width))
        return x + _kept(x, drop) * self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


def _kept(x: Tensor, drop: float) -> Tensor | float:
    """Stochastic depth drawn per sequence and token, scaled so that the mean stays."""
    return (torch.rand(*x.shape[:2], 1) >= drop).to(x.dtype) / (1 - drop) if drop else 1.0


def _rotated(u: Tensor, turn: Tensor) -> Tensor:
    turned, rest = u[..., :ROTARY], u[..., ROTARY:]
    half = ROTARY // 2
    quarter = torch.cat([-turned[..., half:], turned[..., :half]], -1)
    return torch.cat([turned * turn[0] + quarter * turn[1], rest], -1)


class Network(nn.Module):
    """A decoder whose blocks are either all the same one (``shared``) or independent."""

    def __init__(self, shape: Shape, *, shared: bool) -> None:
        super().__init__()
        self.shape, self.shared = shape, shared
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(1 if shared else shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        for block in self.blocks:
            for name, parameter in block.named_parameters():
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, std=0.6 * shape.width**-0.5)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)
            for last in (block.out, block.down):  # residual branches add up over the layers
                last.weight.data *= (2 * shape.layers) ** -0.5  # type: ignore[union-attr, operator]
        nn.init.normal_(self.embed.weight, std=0.05)

    def forward(self, ids: Int[Tensor, "batch pos"], drop: float = 0.0) -> Float[Tensor, "batch pos vocabulary"]:
        frequency = ROTARY_BASE ** (-torch.arange(0, ROTARY, 2) / ROTARY)
        angle = torch.arange(ids.shape[1])[:, None] * frequency
        turn = torch.cat([angle, angle], -1)
        turn = torch.stack([turn.cos(), turn.sin()])
        x = self.embed(ids)
        for layer in range(self.shape.layers):
            x = self.blocks[0 if self.shared else layer](x, turn, drop)
        return self.norm(x) @ self.embed.weight.T

    def unshared(self) -> "Network":
        """The same function with a block of its own for every layer."""
        made = Network(self.shape, shared=False)
        made.embed.load_state_dict(self.embed.state_dict())
        made.norm.load_state_dict(self.norm.state_dict())
        for layer, block in enumerate(made.blocks):
            block.load_state_dict(self.blocks[0 if self.shared else layer].state_dict())
        return made


def to_hugging_face(net: Network):
    """The same model as ``GPTNeoXForCausalLM`` (sequential residual, tied embeddings)."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = net.shape
    config = GPTNeoXConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        hidden_act="gelu_new",
        max_position_embeddings=shape.context,
        use_parallel_residual=False,
        tie_word_embeddings=True,
        layer_norm_eps=net.norm.eps,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": ROTARY_BASE,
            "partial_rotary_factor": ROTARY / (shape.width // shape.heads),
        },
    )
    state = {"gpt_neox.embed_in.weight": net.embed.weight, "lm_head.weight": net.embed.weight}
    state |= {f"gpt_neox.final_layer_norm.{name}": value for name, value in net.norm.named_parameters()}
    names = {
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
        "attention.dense": "out",
        "mlp.dense_h_to_4h": "up",
        "mlp.dense_4h_to_h": "down",
    }
    for layer in range(shape.layers):
        block = net.blocks[0 if net.shared else layer]
        prefix = f"gpt_neox.layers.{layer}."
        for theirs, ours in names.items():
            for name, value in getattr(block, ours).named_parameters():
                state[f"{prefix}{theirs}.{name}"] = value
        for name, value in block.qkv.named_parameters():  # type: ignore[union-attr]
            by_head = value.unflatten(0, (3, shape.heads, -1)).transpose(0, 1)  # NeoX keeps q, k, v of a head together
            state[f"{prefix}attention.query_key_value.{name}"] = by_head.flatten(0, 2)
    model = GPTNeoXForCausalLM(config)
    model.load_state_dict({name: value.detach().clone() for name, value in state.items()}, strict=True)
    return model.eval()

"""The edit head: from the MLLM's states at the visual tokens to the guidance of the UNet (paper, sec. 3.2).

Parameter names and layouts are those of the released PyTorch module, whose body is `torch.nn.Transformer`.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mgie_jax.models.attention import dot_product_attention

Dtype = Any


@dataclass(frozen=True)
class EditHeadConfig:
    """Sizes of the edit head; the defaults are the released ones.

    `num_layers` each of encoder and decoder. Raises ValueError where `nhead` does not divide `d_model`.
    """

    llm_hidden_size: int = 4096
    d_model: int = 512
    nhead: int = 4
    num_layers: int = 4
    dim_feedforward: int = 2048
    num_queries: int = 77
    cross_attention_dim: int = 768

    def __post_init__(self):
        if self.d_model % self.nhead:
            raise ValueError(f"d_model {self.d_model} is not a multiple of nhead {self.nhead}")


class MultiheadAttention(nn.Module):
    """`torch.nn.MultiheadAttention`: q, k, v packed in one `in_proj_weight` (3 width, width)."""

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], context: Float[Array, "b m c"]) -> Float[Array, "b l c"]:
        width = x.shape[-1]
        # (3 width, width) as out, in: torch's orientation, hence the axes.
        init = nn.initializers.glorot_uniform(in_axis=1, out_axis=0)
        weight = self.param("in_proj_weight", init, (3 * width, width)).astype(self.dtype)
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * width,)).astype(self.dtype)

        def project(inputs, i):
            rows = slice(i * width, (i + 1) * width)
            y = jnp.einsum("...i,oi->...o", inputs.astype(self.dtype), weight[rows]) + bias[rows]
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        y = dot_product_attention(project(x, 0), project(context, 1), project(context, 2))
        return nn.Dense(width, dtype=self.dtype, name="out_proj")(y.reshape(x.shape))


class Layer(nn.Module):
    """A pre-norm encoder layer or, where `cross`, decoder layer: ReLU feed-forward, no dropout, no masks."""

    config: EditHeadConfig
    cross: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], memory: Float[Array, "b m c"] | None = None) -> Float[Array, "b l c"]:
        c = self.config
        h = layer_norm("norm1", self.dtype)(x)
        x = x + MultiheadAttention(c.nhead, self.dtype, name="self_attn")(h, h)
        if self.cross:
            h = layer_norm("norm2", self.dtype)(x)
            x = x + MultiheadAttention(c.nhead, self.dtype, name="multihead_attn")(h, memory)
        h = layer_norm("norm3" if self.cross else "norm2", self.dtype)(x)
        h = nn.relu(nn.Dense(c.dim_feedforward, dtype=self.dtype, name="linear1")(h))
        return x + nn.Dense(c.d_model, dtype=self.dtype, name="linear2")(h)


class Stack(nn.Module):
    """Layers and a final norm: `TransformerEncoder` or, where `cross`, `TransformerDecoder`."""

    config: EditHeadConfig
    cross: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], memory: Float[Array, "b m c"] | None = None) -> Float[Array, "b l c"]:
        for i in range(self.config.num_layers):
            x = Layer(self.config, self.cross, self.dtype, name=f"layers.{i}")(x, memory)
        return layer_norm("norm", self.dtype)(x)


class Transformer(nn.Module):
    """`torch.nn.Transformer(norm_first=True, batch_first=True)` with its two final norms."""

    config: EditHeadConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, source: Float[Array, "b m c"], target: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        memory = Stack(self.config, cross=False, dtype=self.dtype, name="encoder")(source)
        return Stack(self.config, cross=True, dtype=self.dtype, name="decoder")(target, memory)


class EditHead(nn.Module):
    """Guidance from visual-token states: `hid2feat(mapper(llm2hid(x), query))`.

    `x` is hidden state + `[IMG]` embedding at the eight visual tokens, (b, 8, llm_hidden_size); zero hidden
    states give the null guidance. Returns (b, num_queries, cross_attention_dim) in `dtype`. Raises
    ValueError where the width of `x` is not the config's.
    """

    config: EditHeadConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n llm"]) -> Float[Array, "b q d"]:
        c = self.config
        if x.shape[-1] != c.llm_hidden_size:
            raise ValueError(f"EditHead: width of x is {x.shape[-1]}, the config says {c.llm_hidden_size}")
        query = self.param("query", nn.initializers.normal(1.0), (1, c.num_queries, c.d_model))
        query = jnp.broadcast_to(query.astype(self.dtype), (x.shape[0], c.num_queries, c.d_model))
        source = nn.Dense(c.d_model, dtype=self.dtype, name="llm2hid")(x)
        h = Transformer(c, self.dtype, name="mapper")(source, query)
        return nn.Dense(c.cross_attention_dim, dtype=self.dtype, name="hid2feat")(h)


def layer_norm(name: str, dtype: Dtype) -> nn.LayerNorm:
    """torch's LayerNorm, to be called inside a compact `__call__`."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)

"""T5 v1.1 (Flan-T5): transformers' `T5ForConditionalGeneration`, parameter for parameter (arXiv 1910.10683).

Blocks are scanned. The residual stream, norms and softmax are float32 whatever the compute dtype: T5's
feed-forward outputs grow past what bfloat16 adds up faithfully.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from mgie_jax.models.attention import dot_product_attention
from mgie_jax.models.common import append_to_stack
from mgie_jax.types import KVCache


@dataclass(frozen=True)
class T5Config:
    """Sizes, named as in the Hugging Face config.json."""

    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    vocab_size: int = 32128
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    tie_word_embeddings: bool = False

    def __post_init__(self):
        if self.tie_word_embeddings:
            raise ValueError("T5 v1.1 has an lm_head of its own; the first T5, with tied embeddings, is not supported")


@struct.dataclass
class T5Cache:
    """What decoding carries: the decoder's own keys and values, and those of the encoded text, made once."""

    own: KVCache
    cross_keys: Float[Array, "layers b s heads d_kv"]
    cross_values: Float[Array, "layers b s heads d_kv"]
    cross_mask: Bool[Array, "b s"]


def relative_buckets(
    query: Int[Array, " q"], key: Int[Array, " k"], config: T5Config, bidirectional: bool
) -> Int[Array, "q k"]:
    """The bucket of each key position relative to each query position, as transformers'
    `T5Attention._relative_position_bucket`: exact at short range, logarithmic up to the maximal distance, and
    a half each for keys before and after when `bidirectional`.
    """
    buckets, furthest = config.relative_attention_num_buckets, config.relative_attention_max_distance
    if bidirectional:
        buckets //= 2
    exact = buckets // 2
    # A table over distances: a logarithm rounded differently on another device would move a bucket's border.
    distance = np.arange(furthest + 1, dtype=np.float32)
    ratio = np.log(np.maximum(distance, exact) / exact) / np.float32(math.log(furthest / exact))
    coarse = np.minimum(exact + (ratio * (buckets - exact)).astype(np.int32), buckets - 1)
    table = jnp.asarray(np.where(distance < exact, distance.astype(np.int32), coarse))

    offset = key[None, :] - query[:, None]
    if not bidirectional:
        return table[jnp.clip(-offset, 0, furthest)]
    return table[jnp.minimum(jnp.abs(offset), furthest)] + jnp.where(offset > 0, buckets, 0)


class OwnerOfBias(nn.Module):
    """The relative position table of a stack, under the path where transformers' first block keeps it."""

    config: T5Config
    path: tuple[str, ...] = ("layer.0", "SelfAttention")

    @nn.compact
    def __call__(self, buckets: Int[Array, "q k"]) -> Float[Array, "1 heads q k"]:
        if self.path:
            return OwnerOfBias(self.config, self.path[1:], name=self.path[0])(buckets)
        size = self.config.relative_attention_num_buckets
        table = nn.Embed(size, self.config.num_heads, dtype=jnp.float32, name="relative_attention_bias")
        return table(buckets).transpose(2, 0, 1)[None]


def dense_to_float32(features: int, dtype: Dtype, name: str | None = None) -> nn.Dense:
    """A linear layer onto the residual stream: computed in `dtype`, its sums kept in float32 and not rounded."""
    accumulate = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    return nn.Dense(features, use_bias=False, dtype=dtype, dot_general=accumulate, name=name)


class T5Attention(nn.Module):
    """Multi-head attention without bias terms and without scaling of its logits."""

    config: T5Config
    dtype: Dtype = jnp.float32

    def setup(self):
        dense = partial(nn.Dense, self.config.num_heads * self.config.d_kv, use_bias=False, dtype=self.dtype)
        self.q, self.k, self.v = dense(), dense(), dense()
        self.o = dense_to_float32(self.config.d_model, self.dtype)

    def heads(self, x: Float[Array, "b l inner"]) -> Float[Array, "b l heads d_kv"]:
        return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.d_kv)

    def keys_values(
        self, x: Float[Array, "b k d"]
    ) -> tuple[Float[Array, "b k heads d_kv"], Float[Array, "b k heads d_kv"]]:
        return self.heads(self.k(x)), self.heads(self.v(x))

    def __call__(
        self,
        x: Float[Array, "b q d"],
        k: Float[Array, "b k heads d_kv"],
        v: Float[Array, "b k heads d_kv"],
        mask: Bool[Array, "#b 1 #q k"],
        bias: Float[Array, "1 heads q k"] | None = None,
    ) -> Float[Array, "b q d"]:
        y = dot_product_attention(self.heads(self.q(x)), k, v, mask=mask, bias=bias, scale=1.0)
        return self.o(y.reshape(*y.shape[:-2], -1))


def rms_norm(config: T5Config, dtype: Dtype, name: str | None = None) -> nn.RMSNorm:
    """T5's layer norm: it scales and does not centre."""
    return nn.RMSNorm(epsilon=config.layer_norm_epsilon, dtype=dtype, name=name)


class T5LayerSelfAttention(nn.Module):
    config: T5Config
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask, bias, stack=None, layer=None, index=None):
        attention = T5Attention(self.config, self.dtype, name="SelfAttention")
        normed = rms_norm(self.config, self.dtype, "layer_norm")(x)
        k, v = attention.keys_values(normed)
        if stack is not None:
            stack, k, v = append_to_stack(stack, k, v, layer, index)
        return x + attention(normed, k, v, mask, bias), stack


class T5LayerCrossAttention(nn.Module):
    config: T5Config
    dtype: Dtype = jnp.float32

    def setup(self):
        self.EncDecAttention = T5Attention(self.config, self.dtype)
        self.layer_norm = rms_norm(self.config, self.dtype)

    def keys_values(self, encoded: Float[Array, "b s d"]):
        return self.EncDecAttention.keys_values(encoded)

    def __call__(self, x, k, v, mask):
        # Rows about the same text stand together and ask as one row of more tokens: its keys and values are there once.
        asked = self.layer_norm(x).reshape(k.shape[0], -1, x.shape[-1])
        return x + self.EncDecAttention(asked, k, v, mask).reshape(x.shape)


class T5DenseGatedActDense(nn.Module):
    config: T5Config
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        dense = partial(nn.Dense, self.config.d_ff, use_bias=False, dtype=self.dtype)
        gated = nn.gelu(dense(name="wi_0")(x), approximate=True) * dense(name="wi_1")(x)
        return dense_to_float32(self.config.d_model, self.dtype, "wo")(gated)


class T5LayerFF(nn.Module):
    config: T5Config
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        normed = rms_norm(self.config, self.dtype, "layer_norm")(x)
        return x + T5DenseGatedActDense(self.config, self.dtype, name="DenseReluDense")(normed)


class T5EncoderBlock(nn.Module):
    """One encoder block as the body of a scan."""

    config: T5Config
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask, bias):
        x, _ = T5LayerSelfAttention(self.config, self.dtype, name="layer.0")(x, mask, bias)
        return T5LayerFF(self.config, self.dtype, name="layer.1")(x), None


class T5DecoderBlock(nn.Module):
    """One decoder block as the body of two scans: over its cross keys and values, and over the tokens."""

    config: T5Config
    dtype: Dtype = jnp.float32

    def setup(self):
        # PyTorch's names hold a dot, which an attribute statement cannot spell.
        setattr(self, "layer.0", T5LayerSelfAttention(self.config, self.dtype))
        setattr(self, "layer.1", T5LayerCrossAttention(self.config, self.dtype))
        setattr(self, "layer.2", T5LayerFF(self.config, self.dtype))

    def cross(self, carry, encoded):
        return carry, getattr(self, "layer.1").keys_values(encoded)

    def __call__(self, carry, layer, cross_k, cross_v, mask, cross_mask, bias, index):
        x, stack = carry
        x, stack = getattr(self, "layer.0")(x, mask, bias, stack, layer, index)
        x = getattr(self, "layer.1")(x, cross_k, cross_v, cross_mask)
        return (getattr(self, "layer.2")(x), stack), None


class T5Encoder(nn.Module):
    config: T5Config
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, embeds: Float[Array, "b s d"], mask: Bool[Array, "b s"]) -> Float[Array, "b s d"]:
        place = jnp.arange(embeds.shape[1])
        buckets = relative_buckets(place, place, self.config, bidirectional=True)
        bias = OwnerOfBias(self.config, name="block.0")(buckets)
        blocks = nn.scan(
            T5EncoderBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=self.config.num_layers,
        )(self.config, self.dtype, name="block")
        x, _ = blocks(embeds.astype(jnp.float32), mask[:, None, None, :], bias)
        return rms_norm(self.config, self.dtype, "final_layer_norm")(x)


class T5Decoder(nn.Module):
    config: T5Config
    dtype: Dtype = jnp.float32

    def setup(self):
        config = self.config
        lift = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=config.num_decoder_layers)
        tokens = dict(in_axes=(0, 0, 0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast), **lift)
        cross = dict(in_axes=nn.broadcast, **lift)
        self.block = nn.scan(T5DecoderBlock, methods={"__call__": tokens, "cross": cross})(config, self.dtype)
        setattr(self, "block.0", OwnerOfBias(config))
        self.final_layer_norm = rms_norm(config, self.dtype)

    def start(self, encoded: Float[Array, "b s d"], mask: Bool[Array, "b s"], slots: int) -> T5Cache:
        """See `T5ForConditionalGeneration.start`."""
        config, rows = self.config, encoded.shape[0]
        _, (keys, values) = self.block.cross(None, encoded)
        shape = (config.num_decoder_layers, rows, slots, config.num_heads, config.d_kv)
        own = KVCache(
            keys=jnp.zeros(shape, self.dtype),
            values=jnp.zeros(shape, self.dtype),
            valid=jnp.zeros((rows, slots), bool),
            index=jnp.zeros((), jnp.int32),
        )
        return T5Cache(own=own, cross_keys=keys, cross_values=values, cross_mask=mask)

    def __call__(self, embeds: Float[Array, "b l d"], cache: T5Cache) -> tuple[Float[Array, "b l d"], T5Cache]:
        """See `T5ForConditionalGeneration.decode`."""
        own, length = cache.own, embeds.shape[1]
        if length > own.valid.shape[1]:
            raise ValueError(f"{length} tokens do not fit a cache of {own.valid.shape[1]} slots")
        query, key = own.index + jnp.arange(length), jnp.arange(own.valid.shape[1])
        bias = getattr(self, "block.0")(relative_buckets(query, key, self.config, bidirectional=False))
        (x, stack), _ = self.block(
            (embeds.astype(jnp.float32), (own.keys, own.values)),
            jnp.arange(self.config.num_decoder_layers),
            cache.cross_keys,
            cache.cross_values,
            (key <= query[:, None])[None, None],
            cache.cross_mask[:, None, None, :],
            bias,
            own.index,
        )
        valid = jax.lax.dynamic_update_slice(own.valid, jnp.ones(embeds.shape[:2], bool), (0, own.index))
        own = KVCache(keys=stack[0], values=stack[1], valid=valid, index=own.index + length)
        return self.final_layer_norm(x), cache.replace(own=own)


class T5ForConditionalGeneration(nn.Module):
    """The encoder-decoder with its vocabulary head."""

    config: T5Config
    dtype: Dtype = jnp.float32

    def setup(self):
        config = self.config
        # Not rounded to the compute dtype: it opens the float32 residual stream.
        self.shared = nn.Embed(config.vocab_size, config.d_model, dtype=jnp.float32)
        self.encoder = T5Encoder(config, self.dtype)
        self.decoder = T5Decoder(config, self.dtype)
        self.lm_head = dense_to_float32(config.vocab_size, self.dtype)

    def __call__(
        self, ids: Int[Array, "b s"], mask: Bool[Array, "b s"], decoder_ids: Int[Array, "b l"]
    ) -> Float[Array, "b l d"]:
        """The decoder's final states for whole texts; `decoder_ids` begin with the start (pad) token.

        `mask` is False on the padding of `ids`, at either end. Padding of `decoder_ids` stands at their
        right.
        """
        hidden, _ = self.decode(decoder_ids, self.start(self.encode(ids, mask), mask, decoder_ids.shape[1]))
        if self.is_initializing():
            self.logits(hidden)
        return hidden

    def encode(self, ids: Int[Array, "b s"], mask: Bool[Array, "b s"]) -> Float[Array, "b s d"]:
        """The encoder's final states; those of padding mean nothing."""
        return self.encoder(self.shared(ids), mask)

    def start(self, encoded: Float[Array, "b s d"], mask: Bool[Array, "b s"], slots: int) -> T5Cache:
        """A cache for decoding up to `slots` tokens about the encoded text, its keys and values computed."""
        return self.decoder.start(encoded, mask, slots)

    def decode(self, ids: Int[Array, "b l"], cache: T5Cache) -> tuple[Float[Array, "b l d"], T5Cache]:
        """The final states of the l tokens that follow those in the cache, and the cache with them added.

        There may be several rows for each encoded text, one behind the other, as beams are. The caller leaves room:
        past the last slot, writes would fall on the newest ones. Raises ValueError if l alone exceeds the slots.
        """
        return self.decoder(self.shared(ids), cache)

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b vocab"]:
        """Next-token logits in float32."""
        return self.lm_head(hidden)

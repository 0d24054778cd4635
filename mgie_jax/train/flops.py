"""How many floating-point operations training takes, counted from the sizes of the networks, and devices' peaks.

The convention is that of model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B): a multiply-add counts two;
products of matrices and convolutions count, everything else (norms, softmax, gathers, the optimizer) does not; padding
counts as what it is computed as; and what a backward pass recomputes to save memory does not count, for it is no use
to the model. Backward, a product costs its forward FLOPs once for each of its two factors whose gradient is needed:
for a weight if it is trained, for an activation if anything before it is trained. A layer that is frozen behind a
trained one costs twice its forward pass in all, a trained one three times, a frozen one before all that is trained
once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from mgie_jax.models.clip import CLIPVisionConfig
from mgie_jax.models.edit_head import EditHeadConfig
from mgie_jax.models.llama import LlamaConfig
from mgie_jax.models.mgie import NUM_IMG_TOKENS
from mgie_jax.models.mllm import MLLMConfig
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.models.unet import UNetConfig
from mgie_jax.models.vae import VAEConfig

# bf16 FLOP/s of one JAX device without sparsity, as the makers publish them, by the beginning of its `device_kind`.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # what a v5p calls itself
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # half a chip
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,  # SXM
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
}


@dataclass(frozen=True)
class StepFlops:
    """Of one example, in FLOPs."""

    forward: float
    backward: float

    @property
    def training(self) -> float:
        return self.forward + self.backward


def device_peak(kind: str | None = None) -> float | None:
    """bf16 FLOP/s of one device of `kind`, by default the kind JAX runs on; None where it is not in `PEAKS`."""
    kind = jax.devices()[0].device_kind if kind is None else kind
    known = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(known, key=len)] if known else None


def step_flops(
    config: MGIEConfig, trainable: Sequence[str], *, tokens: int, image_size: int | None = None, batch_size: int = 1,
    noise_draws: int = 1,
) -> StepFlops:  # fmt: skip
    """FLOPs of one example in a joint step (`train.loss.predict`), or in a step of the MLLM alone.

    Args:
        config: the model.
        trainable: regular expressions of what is trained, as `train.state.split_params` takes them.
        tokens: length that texts are padded to.
        image_size: side of source and target in pixels; None: the MLLM alone, on L_ins.
        batch_size: examples that share the one pass of the null guidance through the edit head.
        noise_draws: passes of the UNet per example.
    """
    count = _Count(tuple(trainable))
    states = _mllm(count, config.mllm, batch_size, tokens)
    if image_size is not None:
        latents = _vae_encoder(count, config.vae, 2 * batch_size, image_size)
        emb = count.trains("mllm/model/embed_tokens/embedding")
        guidance = _edit_head(count, config.edit_head, batch_size, states or emb)
        null_guidance = _edit_head(count, config.edit_head, 1, emb)
        rows, side = batch_size * noise_draws, image_size // config.vae.downsampling
        queries = config.edit_head.num_queries
        _unet(count, config.unet, rows, side, queries, latents, guidance or null_guidance)
    return StepFlops(count.forward / batch_size, count.backward / batch_size)


class _Count:
    """FLOPs so far. Its methods, and the networks below, take whether their inputs depend on anything trained (so that
    gradients go through them) and return whether their output does."""

    def __init__(self, trainable: tuple[str, ...]):
        self.trainable, self.forward, self.backward = trainable, 0, 0

    def trains(self, *paths: str) -> bool:
        return any(re.match(pattern, path) for pattern in self.trainable for path in paths)

    def product(self, flops: int, *grads: bool) -> bool:
        """Of two factors."""
        self.forward += flops
        self.backward += flops * sum(grads)
        return any(grads)

    def dense(self, path: str, rows: int, inputs: int, outputs: int, grad: bool, bias: bool = True) -> bool:
        """`inputs` is all that one output is a sum over: a convolution's channels times its window."""
        grad = self.product(2 * rows * inputs * outputs, grad, self.trains(f"{path}/kernel"))
        return grad or (bias and self.trains(f"{path}/bias"))

    def norm(self, path: str, grad: bool, bias: bool = True) -> bool:
        return grad or self.trains(f"{path}/scale") or (bias and self.trains(f"{path}/bias"))

    def attention(self, rows: int, queries: int, keys: int, width: int, q: bool, k: bool, v: bool) -> bool:
        flops = 2 * rows * queries * keys * width
        return self.product(flops, self.product(flops, q, k), v)

    def scan(self, layer, layers: int, grad: bool) -> bool:
        """`layer(count, grad)` over and over. A scan is one program for all its layers: what gradients go through in
        one of them, they go through in all."""
        grad = grad or layer(_Count(self.trainable), grad)
        for _ in range(layers):
            grad = layer(self, grad)
        return grad


def _mllm(count: _Count, config: MLLMConfig, rows: int, tokens: int) -> bool:
    llm, d = config.llm, config.llm.hidden_size
    x = _clip(count, config.vision, rows, config.mm_vision_select_layer)
    patches, path = rows * config.vision.num_patches, "mllm/model/mm_projector"
    if config.mm_projector_type == "linear":
        x = count.dense(path, patches, config.vision.hidden_size, d, x)
    else:
        x = count.dense(f"{path}/0", patches, config.vision.hidden_size, d, x)
        x = count.dense(f"{path}/2", patches, d, d, x)
    x = x or count.trains("mllm/model/embed_tokens/embedding")
    x = count.scan(lambda count, grad: _llama_layer(count, llm, rows, tokens, grad), llm.num_hidden_layers, x)
    x = count.norm("mllm/model/norm", x, bias=False)
    count.dense("mllm/lm_head", rows * tokens, d, llm.vocab_size, x, bias=False)
    return x


def _clip(count: _Count, c: CLIPVisionConfig, rows: int, select_layer: int) -> bool:
    d, tokens, top = c.hidden_size, c.num_patches + 1, "mllm/vision_tower/vision_model"
    places = rows * tokens

    def layer(count: _Count, x: bool) -> bool:
        path = f"{top}/encoder/layers"
        h = count.norm(f"{path}/layer_norm1", x)
        q, k, v = (count.dense(f"{path}/self_attn/{name}_proj", places, d, d, h) for name in "qkv")
        x |= count.dense(f"{path}/self_attn/out_proj", places, d, d, count.attention(rows, tokens, tokens, d, q, k, v))
        h = count.dense(f"{path}/mlp/fc1", places, d, c.intermediate_size, count.norm(f"{path}/layer_norm2", x))
        return x | count.dense(f"{path}/mlp/fc2", places, c.intermediate_size, d, h)

    patch, path = c.patch_size**2 * c.num_channels, f"{top}/embeddings"
    x = count.dense(f"{path}/patch_embedding", rows * c.num_patches, patch, d, False, bias=False)
    x |= count.trains(f"{path}/class_embedding", f"{path}/position_embedding/embedding")
    x = count.norm(f"{top}/pre_layrnorm", x)
    depth = select_layer if select_layer >= 0 else c.num_hidden_layers + 1 + select_layer
    return count.scan(layer, depth, x)


def _llama_layer(count: _Count, c: LlamaConfig, rows: int, tokens: int, x: bool) -> bool:
    d, places, path = c.hidden_size, rows * tokens, "mllm/model/layers"

    def dense(name: str, inputs: int, outputs: int, grad: bool) -> bool:
        return count.dense(f"{path}/{name}", places, inputs, outputs, grad, bias=False)

    h = count.norm(f"{path}/input_layernorm", x, bias=False)
    kv = c.num_key_value_heads * c.head_dim
    q, k, v = (dense(f"self_attn/{name}_proj", d, d if name == "q" else kv, h) for name in "qkv")
    # The upper triangle counts: it is computed, and masked.
    x |= dense("self_attn/o_proj", d, d, count.attention(rows, tokens, tokens, d, q, k, v))
    h = count.norm(f"{path}/post_attention_layernorm", x, bias=False)
    gate, up = (dense(f"mlp/{name}_proj", d, c.intermediate_size, h) for name in ("gate", "up"))
    return x | dense("mlp/down_proj", c.intermediate_size, d, gate or up)


def _edit_head(count: _Count, c: EditHeadConfig, rows: int, x: bool) -> bool:
    d, head = c.d_model, "edit_head"

    def attention(path: str, queries: int, keys: int, x: bool, context: bool) -> bool:
        weight, sides = count.trains(f"{path}/in_proj_weight"), ((queries, x), (keys, context), (keys, context))
        q, k, v = (count.product(2 * rows * n * d * d, grad, weight) for n, grad in sides)
        bias = count.trains(f"{path}/in_proj_bias")
        y = count.attention(rows, queries, keys, d, q or bias, k or bias, v or bias)
        return count.dense(f"{path}/out_proj", rows * queries, d, d, y)

    def stack(path: str, tokens: int, x: bool, memory: bool | None) -> bool:
        for i in range(c.num_layers):
            layer = f"{path}/layers.{i}"
            h = count.norm(f"{layer}/norm1", x)
            x |= attention(f"{layer}/self_attn", tokens, tokens, h, h)
            if memory is not None:
                h = count.norm(f"{layer}/norm2", x)
                x |= attention(f"{layer}/multihead_attn", tokens, NUM_IMG_TOKENS, h, memory)
            h = count.norm(f"{layer}/norm{2 if memory is None else 3}", x)
            h = count.dense(f"{layer}/linear1", rows * tokens, d, c.dim_feedforward, h)
            x |= count.dense(f"{layer}/linear2", rows * tokens, c.dim_feedforward, d, h)
        return count.norm(f"{path}/norm", x)

    x = count.dense(f"{head}/llm2hid", rows * NUM_IMG_TOKENS, c.llm_hidden_size, d, x)
    memory = stack(f"{head}/mapper/encoder", NUM_IMG_TOKENS, x, None)
    x = stack(f"{head}/mapper/decoder", c.num_queries, count.trains(f"{head}/query"), memory)
    return count.dense(f"{head}/hid2feat", rows * c.num_queries, d, c.cross_attention_dim, x)


def _resnet(count: _Count, path: str, pixels: int, inputs: int, outputs: int, x: bool, shift: bool = False) -> bool:
    h = count.dense(f"{path}/conv1", pixels, 9 * inputs, outputs, count.norm(f"{path}/norm1", x))
    h = count.dense(f"{path}/conv2", pixels, 9 * outputs, outputs, count.norm(f"{path}/norm2", h or shift))
    if inputs != outputs:
        x = count.dense(f"{path}/conv_shortcut", pixels, inputs, outputs, x)
    return x or h


def _unet(count: _Count, c: UNetConfig, rows: int, side: int, queries: int, x: bool, context: bool) -> bool:
    finest, widths = c.block_out_channels[0], c.block_out_channels
    temb = count.dense("unet/time_embedding/linear_1", rows, finest, 4 * finest, False)
    temb = count.dense("unet/time_embedding/linear_2", rows, 4 * finest, 4 * finest, temb)

    def resnet(path: str, side: int, inputs: int, outputs: int, x: bool) -> bool:
        shift = count.dense(f"{path}/time_emb_proj", rows, 4 * finest, outputs, temb)
        return _resnet(count, path, rows * side**2, inputs, outputs, x, shift)

    def transformer(path: str, side: int, d: int, x: bool) -> bool:
        pixels, places, block = side**2, rows * side**2, f"{path}/transformer_blocks.0"

        def attend(name: str, keys: int, width: int, h: bool, seen: bool) -> bool:
            q = count.dense(f"{name}/to_q", places, d, d, h, bias=False)
            k, v = (count.dense(f"{name}/to_{n}", rows * keys, width, d, seen, bias=False) for n in "kv")
            return count.dense(f"{name}/to_out.0", places, d, d, count.attention(rows, pixels, keys, d, q, k, v))

        y = count.dense(f"{path}/proj_in", places, d, d, count.norm(f"{path}/norm", x))
        h = count.norm(f"{block}/norm1", y)
        y |= attend(f"{block}/attn1", pixels, d, h, h)
        y |= attend(f"{block}/attn2", queries, c.cross_attention_dim, count.norm(f"{block}/norm2", y), context)
        h = count.dense(f"{block}/ff/net.0.proj", places, d, 8 * d, count.norm(f"{block}/norm3", y))
        y |= count.dense(f"{block}/ff/net.2", places, 4 * d, d, h)
        return x | count.dense(f"{path}/proj_out", places, d, d, y)

    x = count.dense("unet/conv_in", rows * side**2, 9 * c.in_channels, finest, x)
    width, skips = finest, [(finest, side, x)]
    for i, (channels, kind) in enumerate(zip(widths, c.down_block_types, strict=True)):
        path = f"unet/down_blocks.{i}"
        for j in range(c.layers_per_block):
            x, width = resnet(f"{path}/resnets.{j}", side, width, channels, x), channels
            if kind == "CrossAttnDownBlock2D":
                x = transformer(f"{path}/attentions.{j}", side, channels, x)
            skips.append((channels, side, x))
        if i < len(widths) - 1:
            side = (side + 1) // 2
            x = count.dense(f"{path}/downsamplers.0/conv", rows * side**2, 9 * channels, channels, x)
            skips.append((channels, side, x))

    x = resnet("unet/mid_block/resnets.0", side, width, width, x)
    x = transformer("unet/mid_block/attentions.0", side, width, x)
    x = resnet("unet/mid_block/resnets.1", side, width, width, x)

    for i, (channels, kind) in enumerate(zip(widths[::-1], c.up_block_types, strict=True)):
        path = f"unet/up_blocks.{i}"
        for j in range(c.layers_per_block + 1):
            skipped, _, skip = skips.pop()
            x, width = resnet(f"{path}/resnets.{j}", side, width + skipped, channels, x or skip), channels
            if kind == "CrossAttnUpBlock2D":
                x = transformer(f"{path}/attentions.{j}", side, channels, x)
        if skips:
            side = skips[-1][1]
            x = count.dense(f"{path}/upsamplers.0/conv", rows * side**2, 9 * channels, channels, x)
    return count.dense("unet/conv_out", rows * side**2, 9 * finest, c.out_channels, count.norm("unet/conv_norm_out", x))


def _vae_encoder(count: _Count, c: VAEConfig, rows: int, side: int) -> bool:
    widths, path = c.block_out_channels, "vae/encoder"
    x = count.dense(f"{path}/conv_in", rows * side**2, 9 * c.in_channels, widths[0], False)
    width = widths[0]
    for i, channels in enumerate(widths):
        block = f"{path}/down_blocks.{i}"
        for j in range(c.layers_per_block):
            x, width = _resnet(count, f"{block}/resnets.{j}", rows * side**2, width, channels, x), channels
        if i < len(widths) - 1:
            side //= 2
            x = count.dense(f"{block}/downsamplers.0/conv", rows * side**2, 9 * channels, channels, x)
    pixels, mid = rows * side**2, f"{path}/mid_block"
    x = _resnet(count, f"{mid}/resnets.0", pixels, width, width, x)
    h = count.norm(f"{mid}/attentions.0/group_norm", x)
    q, k, v = (count.dense(f"{mid}/attentions.0/to_{name}", pixels, width, width, h) for name in "qkv")
    h = count.attention(rows, side**2, side**2, width, q, k, v)
    x |= count.dense(f"{mid}/attentions.0/to_out.0", pixels, width, width, h)
    x = count.norm(f"{path}/conv_norm_out", _resnet(count, f"{mid}/resnets.1", pixels, width, width, x))
    x = count.dense(f"{path}/conv_out", pixels, 9 * width, 2 * c.latent_channels, x)
    return count.dense("vae/quant_conv", pixels, 2 * c.latent_channels, 2 * c.latent_channels, x)

"""Random checkpoints of latent diffusion, of any widths: the original's keys and shapes, written down anew."""

import torch

from mgie_jax.diffusion.schedule import ScheduleConfig, scaled_linear_betas
from mgie_jax.weights import ldm


def _layer(name, *shape, bias=True):
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def _residual(name, inputs, outputs, time):
    shapes = _layer(f"{name}.in_layers.0", inputs) | _layer(f"{name}.in_layers.2", outputs, inputs, 3, 3)
    shapes |= _layer(f"{name}.emb_layers.1", outputs, time) | _layer(f"{name}.out_layers.0", outputs)
    shapes |= _layer(f"{name}.out_layers.3", outputs, outputs, 3, 3)
    return shapes | (_layer(f"{name}.skip_connection", outputs, inputs, 1, 1) if inputs != outputs else {})


def _transformer(name, c, context):
    block = f"{name}.transformer_blocks.0"
    shapes = _layer(f"{name}.norm", c) | _layer(f"{name}.proj_in", c, c, 1, 1) | _layer(f"{name}.proj_out", c, c, 1, 1)
    for attention, width in (("attn1", c), ("attn2", context)):
        shapes |= _layer(f"{block}.{attention}.to_q", c, c, bias=False) | _layer(f"{block}.{attention}.to_out.0", c, c)
        for part in ("to_k", "to_v"):
            shapes |= _layer(f"{block}.{attention}.{part}", c, width, bias=False)
    for norm in ("norm1", "norm2", "norm3"):
        shapes |= _layer(f"{block}.{norm}", c)
    return shapes | _layer(f"{block}.ff.net.0.proj", 8 * c, c) | _layer(f"{block}.ff.net.2", c, 4 * c)


def unet_shapes(channels=32, mults=(1, 2), layers=1, attention=(0,), context=24, inputs=4, outputs=4):
    """Keys and shapes of `openaimodel.UNetModel`, built in the order its constructor builds them."""
    time, width, skips, n = 4 * channels, channels, [channels], 1
    shapes = _layer("time_embed.0", time, channels) | _layer("time_embed.2", time, time)
    shapes |= _layer("input_blocks.0.0", channels, inputs, 3, 3)
    for level, mult in enumerate(mults):
        for _ in range(layers):
            shapes |= _residual(f"input_blocks.{n}.0", width, mult * channels, time)
            width = mult * channels
            if level in attention:
                shapes |= _transformer(f"input_blocks.{n}.1", width, context)
            skips, n = [*skips, width], n + 1
        if level < len(mults) - 1:
            shapes |= _layer(f"input_blocks.{n}.0.op", width, width, 3, 3)
            skips, n = [*skips, width], n + 1
    shapes |= _residual("middle_block.0", width, width, time) | _transformer("middle_block.1", width, context)
    shapes |= _residual("middle_block.2", width, width, time)
    n = 0
    for level in reversed(range(len(mults))):
        for i in range(layers + 1):
            shapes |= _residual(f"output_blocks.{n}.0", width + skips.pop(), mults[level] * channels, time)
            width = mults[level] * channels
            if level in attention:
                shapes |= _transformer(f"output_blocks.{n}.1", width, context)
            if level and i == layers:
                shapes |= _layer(f"output_blocks.{n}.{1 + (level in attention)}.conv", width, width, 3, 3)
            n += 1
    return shapes | _layer("out.0", channels) | _layer("out.2", outputs, channels, 3, 3)


def vae_shapes(channels=32, mults=(1, 2), layers=1, latents=4):
    """Keys and shapes of `autoencoder.AutoencoderKL`."""

    def block(name, inputs, outputs):
        shapes = _layer(f"{name}.norm1", inputs) | _layer(f"{name}.conv1", outputs, inputs, 3, 3)
        shapes |= _layer(f"{name}.norm2", outputs) | _layer(f"{name}.conv2", outputs, outputs, 3, 3)
        return shapes | (_layer(f"{name}.nin_shortcut", outputs, inputs, 1, 1) if inputs != outputs else {})

    def middle(name, c):
        shapes = block(f"{name}.mid.block_1", c, c) | block(f"{name}.mid.block_2", c, c)
        shapes |= _layer(f"{name}.mid.attn_1.norm", c)
        for part in ("q", "k", "v", "proj_out"):
            shapes |= _layer(f"{name}.mid.attn_1.{part}", c, c, 1, 1)
        return shapes

    width, shapes, top = channels, _layer("encoder.conv_in", channels, 3, 3, 3), mults[-1] * channels
    for level, mult in enumerate(mults):
        for i in range(layers):
            shapes |= block(f"encoder.down.{level}.block.{i}", width, mult * channels)
            width = mult * channels
        if level < len(mults) - 1:
            shapes |= _layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    shapes |= middle("encoder", width) | _layer("encoder.norm_out", width)
    shapes |= _layer("encoder.conv_out", 2 * latents, width, 3, 3) | _layer("decoder.conv_in", top, latents, 3, 3)
    shapes |= middle("decoder", top)
    for level in reversed(range(len(mults))):
        for i in range(layers + 1):
            shapes |= block(f"decoder.up.{level}.block.{i}", width, mults[level] * channels)
            width = mults[level] * channels
        if level:
            shapes |= _layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    shapes |= _layer("decoder.norm_out", channels) | _layer("decoder.conv_out", 3, channels, 3, 3)
    shapes |= _layer("quant_conv", 2 * latents, 2 * latents, 1, 1)
    return shapes | _layer("post_quant_conv", latents, latents, 1, 1) | {"loss.logvar": ()}


def checkpoint(dtype=torch.float32, ema=True, **unet):
    """A whole checkpoint, with what else such files hold."""
    torch.manual_seed(0)
    shapes = {ldm.UNET + key: shape for key, shape in unet_shapes(**unet).items()}
    if ema:
        shapes |= {"model_ema." + key[len("model.") :].replace(".", ""): shape for key, shape in shapes.items()}
    shapes |= {ldm.VAE + key: shape for key, shape in vae_shapes().items()}
    shapes["cond_stage_model.transformer.text_model.final_layer_norm.weight"] = (24,)
    tensors = {key: torch.randn(shape).to(dtype) for key, shape in shapes.items()}
    return tensors | {"betas": torch.tensor(scaled_linear_betas(ScheduleConfig())).to(dtype)}

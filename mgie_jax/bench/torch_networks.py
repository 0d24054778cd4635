"""MGIE's networks in PyTorch, put together from transformers, torch.nn.Transformer and diffusers."""

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from mgie_jax.weights.rules import iter_torch

PREFIXES = {"mllm": "", "edit_head": "edit_head.", "unet": "unet.", "vae": "vae."}


class EditHead(nn.Module):
    """The released code's, with its dropout off."""

    def __init__(self, c: dict):
        super().__init__()
        self.llm2hid = nn.Linear(c["llm_hidden_size"], c["d_model"])
        self.query = nn.Parameter(torch.zeros(1, c["num_queries"], c["d_model"]))
        self.mapper = nn.Transformer(
            c["d_model"], c["nhead"], c["num_layers"], c["num_layers"], c["dim_feedforward"], dropout=0.0,
            norm_first=True, batch_first=True,
        )  # fmt: skip
        self.hid2feat = nn.Linear(c["d_model"], c["cross_attention_dim"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hid2feat(self.mapper(self.llm2hid(x), self.query.expand(x.shape[0], -1, -1)))


class TorchMGIE(nn.Module):
    """All of them.

    Args:
        sizes: an `MGIEConfig` as a dict.
        alphas_cumprod: of its schedule.
    """

    def __init__(self, sizes: dict, alphas_cumprod: np.ndarray):
        super().__init__()
        mllm, vae, unet = sizes["mllm"], sizes["vae"], sizes["unet"]
        vision, llm, levels = dict(mllm["vision"]), dict(mllm["llm"]), len(vae["block_out_channels"])
        # Layers after the one that is read would be run for nothing.
        select = mllm["mm_vision_select_layer"]
        vision["num_hidden_layers"] = select if select >= 0 else vision["num_hidden_layers"] + 1 + select
        llm["rope_parameters"] = {"rope_type": "default", "rope_theta": llm.pop("rope_theta")}
        wide, width = vision["hidden_size"], llm["hidden_size"]
        self.vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision))
        self.llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**llm))
        self.projector = nn.Linear(wide, width)
        if mllm["mm_projector_type"] != "linear":
            self.projector = nn.Sequential(nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width))
        self.edit_head = EditHead(sizes["edit_head"])
        self.unet = diffusers.UNet2DConditionModel(**unet)
        self.vae = diffusers.AutoencoderKL(
            **vae, down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels
        )
        self.patch, self.img0, self.schedule = mllm["im_patch_id"], llm["vocab_size"] - 8, sizes["schedule"]
        self.register_buffer("alphas", torch.tensor(np.asarray(alphas_cumprod, np.float32)))

    def named_tensors(self) -> dict[str, nn.Parameter]:
        """Parameters by the names they have in MGIE's checkpoints."""

        def name(key: str) -> str:
            if key.startswith("vision."):  # transformers 5 dropped the prefix that published checkpoints keep
                return f"vision_tower.vision_model.{key.removeprefix('vision.').removeprefix('vision_model.')}"
            return key.replace("projector.", "model.mm_projector.", 1).removeprefix("llama.")

        return {name(key): value for key, value in self.named_parameters()}

    def load(self, params: Callable[[str], Mapping[str, Any]]) -> "TorchMGIE":
        """Takes over weights, one network after the other: `params("unet")` is its tree.

        Raises:
            KeyError: a parameter is missing.
            RuntimeError: one has another shape.
        """
        named = self.named_tensors()
        missing = set(named)
        with torch.no_grad():
            for part, prefix in PREFIXES.items():
                for key, value in iter_torch(params(part)):
                    if prefix + key in named:  # the tower's last layer is not run, and not there
                        here = named[prefix + key]
                        here.copy_(torch.from_numpy(np.asarray(value, np.float32)).reshape(here.shape))
                        missing.discard(prefix + key)
        if missing:
            raise KeyError(f"no weights for {', '.join(sorted(missing))}")
        return self

    def see(self, clip_pixels: torch.Tensor) -> torch.Tensor:
        """Features of photos, one a patch."""
        return self.projector(self.vision(clip_pixels).last_hidden_state[:, 1:])

    def embed(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The words of a prompt, and the features in their place."""
        words = self.llama.model.embed_tokens(ids)
        return words.masked_scatter((ids == self.patch)[..., None], features.to(words.dtype))

    def null_states(self) -> torch.Tensor:
        """(1, 8, d): the [IMG] tokens' rows of the word embedding."""
        return self.llama.model.embed_tokens.weight[None, self.img0 : self.img0 + 8]

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, clip_pixels: torch.Tensor,
        source: torch.Tensor, target: torch.Tensor, posterior: torch.Tensor, noise: torch.Tensor,
        timesteps: torch.Tensor, uniform: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """L_ins + 0.5 L_edit of a batch and its draws (`mgie_jax.train.loss`), pictures NCHW."""
        hidden = self.llama.model(
            inputs_embeds=self.embed(ids, self.see(clip_pixels)), attention_mask=mask.to(torch.long), use_cache=False
        ).last_hidden_state
        logits = self.llama.lm_head(hidden).float()
        l_ins = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().long(), ignore_index=-100)

        first = (ids == self.img0).int().argmax(-1) - 1
        index = first[:, None] + torch.arange(8, device=ids.device)
        states = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
        emb = self.null_states()
        guidance, null = self.edit_head(states + emb), self.edit_head(emb)

        latents = self.vae.encode(torch.cat([source, target])).latent_dist
        rows, draws = len(source), len(uniform) // len(source)
        image = latents.mean[:rows].repeat_interleave(draws, 0)
        clean = (latents.mean[rows:] + latents.std[rows:] * posterior) * self.vae.config.scaling_factor
        clean = clean.repeat_interleave(draws, 0)
        context = torch.where((uniform < 0.10)[:, None, None], null, guidance.repeat_interleave(draws, 0))
        image = torch.where(((uniform >= 0.05) & (uniform < 0.15))[:, None, None, None], 0.0, image)
        signal, spread = (x.sqrt()[:, None, None, None] for x in (self.alphas[timesteps], 1 - self.alphas[timesteps]))
        noisy = signal * clean + spread * noise
        output = self.unet(torch.cat([noisy, image], 1), timesteps, context).sample
        wanted = noise if self.schedule["prediction_type"] == "epsilon" else signal * noise - spread * clean
        return l_ins + 0.5 * F.mse_loss(output.float(), wanted)

"""MGIE's joint loss in PyTorch, put together from transformers, torch.nn.Transformer and diffusers."""

import diffusers
import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F


class EditHead(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.llm2hid = nn.Linear(c["llm_hidden_size"], c["d_model"])
        self.query = nn.Parameter(torch.zeros(1, c["num_queries"], c["d_model"]))
        self.mapper = nn.Transformer(
            c["d_model"], c["nhead"], c["num_layers"], c["num_layers"], c["dim_feedforward"], dropout=0.0,
            norm_first=True, batch_first=True,
        )  # fmt: skip
        self.hid2feat = nn.Linear(c["d_model"], c["cross_attention_dim"])

    def forward(self, x):
        return self.hid2feat(self.mapper(self.llm2hid(x), self.query.expand(x.shape[0], -1, -1)))


class TorchMGIE(nn.Module):
    """`sizes` is an `MGIEConfig` as a dict, with a linear projector."""

    def __init__(self, sizes: dict, img0: int, alphas_cumprod: np.ndarray):
        super().__init__()
        mllm, vae, unet = sizes["mllm"], sizes["vae"], sizes["unet"]
        vision, llm, levels = dict(mllm["vision"]), dict(mllm["llm"]), len(vae["block_out_channels"])
        # Layers after the one that is read would be run for nothing.
        vision["num_hidden_layers"] += 1 + mllm["mm_vision_select_layer"]
        llm["rope_parameters"] = {"rope_type": "default", "rope_theta": llm.pop("rope_theta")}
        self.vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision))
        self.llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**llm))
        self.projector = nn.Linear(vision["hidden_size"], llm["hidden_size"])
        self.edit_head = EditHead(sizes["edit_head"])
        self.unet = diffusers.UNet2DConditionModel(**unet)
        self.vae = diffusers.AutoencoderKL(
            **vae, down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels
        )
        self.patch, self.img0, self.schedule = mllm["im_patch_id"], img0, sizes["schedule"]
        self.register_buffer("alphas", torch.tensor(np.asarray(alphas_cumprod, np.float32)))

    def named_tensors(self) -> dict[str, nn.Parameter]:
        """Parameters by the names they have in MGIE's checkpoints."""

        def name(key: str) -> str:
            if key.startswith("vision."):  # transformers 5 dropped the prefix that published checkpoints keep
                return f"vision_tower.vision_model.{key.removeprefix('vision.').removeprefix('vision_model.')}"
            return key.replace("projector.", "model.mm_projector.", 1).removeprefix("llama.")

        return {name(key): value for key, value in self.named_parameters()}

    def load(self, tensors) -> None:
        """Raises KeyError or RuntimeError where a parameter is missing or of another shape."""
        with torch.no_grad():
            for key, value in self.named_tensors().items():
                value.copy_(torch.tensor(tensors[key]).reshape(value.shape))

    def forward(self, ids, mask, labels, clip_pixels, source, target, posterior, noise, timesteps, uniform):
        """L_ins + 0.5 L_edit of a batch and its draws (`mgie_jax.train.loss`), pictures NCHW."""
        seen = self.projector(self.vision(clip_pixels).last_hidden_state[:, 1:])
        words, patches = self.llama.model.embed_tokens(ids), (ids == self.patch)[..., None]
        embeds = words.masked_scatter(patches, seen)
        hidden = self.llama.model(
            inputs_embeds=embeds, attention_mask=mask.to(torch.long), use_cache=False
        ).last_hidden_state
        logits = self.llama.lm_head(hidden)
        l_ins = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().long(), ignore_index=-100)

        first = (ids == self.img0).int().argmax(-1) - 1
        index = first[:, None] + torch.arange(8)
        states = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
        emb = self.llama.model.embed_tokens.weight[self.img0 : self.img0 + 8]
        guidance, null = self.edit_head(states + emb), self.edit_head(emb[None])

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
        return l_ins + 0.5 * F.mse_loss(output, wanted)

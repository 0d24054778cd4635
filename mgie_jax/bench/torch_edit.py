"""An edit and its stages in PyTorch: transformers' `generate`, diffusers' networks, scheduler and pipeline."""

import importlib
from collections.abc import Callable
from functools import cached_property

import diffusers
import numpy as np
import torch
from PIL import Image

from mgie_jax.bench.inputs import Source
from mgie_jax.bench.torch_networks import TorchMGIE
from mgie_jax.diffusion.schedule import alphas_cumprod
from mgie_jax.photo import CLIP_MEAN, CLIP_STD, clip_pixels, fit
from mgie_jax.weights.model_config import diffusion_files

# Class of each sampler, and the spacing of its timesteps.
SCHEDULERS = {
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, "linspace"),
    "ddim": (diffusers.DDIMScheduler, "leading"),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, "linspace"),
}


class Peer:
    """The networks on PyTorch's device, and what is to be done with them.

    Args:
        source: of the model.
        arrays: the inputs, by name (`stages.Case.inputs`, and those of an edit).
        request: "dtype", "platform", and how an edit goes: "tokens", "special" (ids of [IMG0], the end and padding).
        compiled: under torch.compile, pictures as channels last.
    """

    def __init__(self, source: Source, arrays: dict[str, np.ndarray], request: dict, compiled: bool):
        self.arrays, self.request, self.sizes, self.compiled = arrays, request, source.sizes, compiled
        self.dtype = getattr(torch, request["dtype"])
        self.device = torch_device(request["platform"])
        loaded = networks(source, self.dtype)
        self.emb = torch.tensor(loaded[1]).to(self.device, self.dtype)
        self.net = loaded[0].to(self.device).eval().requires_grad_(False)
        self.layout = torch.channels_last if compiled else torch.contiguous_format
        for module in (self.net.unet, self.net.vae):
            module.to(memory_format=self.layout)
        wrap = torch.compile if compiled else lambda function: function
        net = self.net
        self.see, self.head = wrap(net.see), wrap(net.edit_head)
        self.unet = wrap(net.unet)
        net.llama.forward = wrap(net.llama.forward)
        net.vae.encode, net.vae.decode = wrap(net.vae.encode), wrap(net.vae.decode)
        self.cache = {"cache_implementation": "static"} if compiled else {}

    def tensor(self, name: str) -> torch.Tensor:
        """An input on the device, floats in the model's dtype; pictures and latents NCHW."""
        x = torch.tensor(np.ascontiguousarray(self.arrays[name]))
        x = x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)
        return x.permute(0, 3, 1, 2).contiguous(memory_format=self.layout) if x.ndim == 4 else x

    def stages(self) -> dict[str, tuple[Callable[[], dict], Callable[[], object] | None]]:
        """By name: what computes a stage's outputs, and what of its time is not the stage's."""
        x = {name: self.tensor(name) for name in self.arrays if name != "noises"}
        net, scale = self.net, self.sizes.vae.scaling_factor
        prompt = self.prompt(x["ids"], x["mask"])
        times = torch.full((len(x["sample"]),), float(self.scheduler.timesteps[0]), device=self.device)

        def prefill() -> dict:
            said = net.llama(inputs_embeds=x["embeds"], use_cache=True, logits_to_keep=1)
            return {"logits": said.logits[:, -1]}

        def unet() -> dict:
            return {"output": self.unet(x["sample"], times, x["context"], return_dict=False)[0]}

        def vae() -> dict:
            return {"pixels": eight_bits(net.vae.decode(x["latents"] / scale, return_dict=False)[0])}

        def decode() -> dict:
            return {
                "tokens": self.answer(prompt, x["clip_pixels"], self.request["tokens"]).sequences[
                    :, prompt[0].shape[1] :
                ]
            }

        def encode() -> dict:
            return {"output": net.vae.encode(x["pixels"]).latent_dist.mode()}

        context = torch.cat([x["guidance"], *[x["null_guidance"].expand_as(x["guidance"])] * 2])
        photo = torch.cat([x["image_latents"], x["image_latents"], torch.zeros_like(x["image_latents"])])
        return {
            "vision": (lambda: {"output": self.see(x["clip_pixels"])}, None),
            "prefill": (prefill, None),
            "decode": (decode, lambda: self.answer(prompt, x["clip_pixels"], 1)),
            "head": (lambda: {"output": self.head(x["states"])}, None),
            "encode": (encode, None),
            "unet": (unet, None),
            "step": (lambda: {"output": self.denoise(x["noise"], photo, context)}, None),
            "sampler": (lambda: {"output": self.sample(x["noise"])}, None),
            "vae": (vae, None),
        }

    def prompt(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask with the padding before the words, where `generate` wants it, and no more of it than needed."""
        longest = int(mask.sum(-1).max())
        rows = [(ids[row][mask[row]], longest - int(mask[row].sum())) for row in range(len(ids))]
        pad = self.request["special"]["pad"]
        return (
            torch.stack([torch.nn.functional.pad(words, (missing, 0), value=pad) for words, missing in rows]).long(),
            torch.stack(
                [torch.nn.functional.pad(torch.ones_like(words), (missing, 0)) for words, missing in rows]
            ).long(),
        )

    def answer(
        self, prompt: tuple, clip_pixels: torch.Tensor, tokens: int, eos: int | None = None, states: bool = False
    ):
        """transformers' greedy answer to a prompt with its photo; `states` has it keep every token's."""
        embeds = self.net.embed(prompt[0], self.see(clip_pixels))
        return self.net.llama.generate(
            prompt[0], inputs_embeds=embeds, attention_mask=prompt[1], max_new_tokens=tokens, do_sample=False,
            no_repeat_ngram_size=3, eos_token_id=eos, pad_token_id=self.request["special"]["pad"], use_cache=True,
            return_dict_in_generate=True, output_hidden_states=states, **self.cache,
        )  # fmt: skip

    @cached_property
    def scheduler(self):
        sizes = self.sizes
        cls, spacing = SCHEDULERS[sizes.sampling.sampler]
        fields = diffusion_files(sizes.unet, sizes.vae, sizes.schedule, sizes.sampling.sampler)
        fields = next(file for name, file in fields.items() if "scheduler" in name)
        made = cls.from_config({**fields, "timestep_spacing": spacing})
        made.set_timesteps(sizes.sampling.steps, device=self.device)
        if len(self.arrays["noises"]):  # the noise of its steps is given, that pictures be comparable
            self.noises = torch.tensor(self.arrays["noises"]).to(self.device, self.dtype).permute(0, 1, 4, 2, 3)
            module = importlib.import_module(cls.__module__)
            module.randn_tensor = lambda *_, **__: self.noises[made.step_index]
        return made

    def denoise(self, noise: torch.Tensor, photo: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """The loop of diffusers' InstructPix2Pix pipeline, which has one branch where both scales are 1."""
        sampling, scheduler = self.sizes.sampling, self.scheduler
        branches = 1 if sampling.guidance_scale == sampling.image_guidance_scale == 1.0 else 3
        photo, context = photo[: branches * len(noise)], context[: branches * len(noise)]
        scheduler.set_timesteps(sampling.steps, device=self.device)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            shown = torch.cat([scheduler.scale_model_input(torch.cat([x] * branches), t), photo], 1)
            said = self.unet(shown, t, context, return_dict=False)[0]
            if branches == 3:
                text, image, uncond = said.chunk(3)
                said = uncond + sampling.guidance_scale * (text - image)
                said = said + sampling.image_guidance_scale * (image - uncond)
            x = scheduler.step(said, t, x, return_dict=False)[0]
        return x

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """The scheduler's part of that loop, on its own input."""
        scheduler = self.scheduler
        scheduler.set_timesteps(self.sizes.sampling.steps, device=self.device)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t), t, x, return_dict=False)[0]
        return x

    @cached_property
    def pipeline(self) -> diffusers.StableDiffusionInstructPix2PixPipeline:
        pipe = diffusers.StableDiffusionInstructPix2PixPipeline(
            vae=self.net.vae, text_encoder=None, tokenizer=None, unet=self.net.unet, scheduler=self.scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipe.unet = self.unet
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def edit(self, photos: list[Image.Image]) -> dict:
        """`generate`, the edit head and diffusers' pipeline: pictures (b, h, w, 3), and the tokens of the answers."""
        sampling, special = self.sizes.sampling, self.request["special"]
        side = self.sizes.mllm.vision.image_size
        fitted = [fit(photo, sampling.resolution, self.sizes.photo_multiple)[0] for photo in photos]
        seen = np.stack([clip_pixels(photo, side, CLIP_MEAN, CLIP_STD) for photo in fitted]).transpose(0, 3, 1, 2)
        seen = torch.tensor(seen).to(self.device, self.dtype)
        prompt = self.prompt(*(torch.tensor(self.arrays[name], device=self.device) for name in ("ids", "mask")))
        said = self.answer(prompt, seen, sampling.max_new_tokens, special["eos"], states=True)
        tokens = said.sequences[:, prompt[0].shape[1] :]
        emb = self.emb[None]
        guidance, null = self.head(self.states(said, tokens) + emb), self.head(emb)
        pictures = self.pipeline(
            image=fitted, prompt_embeds=guidance, negative_prompt_embeds=null.expand_as(guidance),
            latents=self.tensor("noise"), num_inference_steps=sampling.steps, guidance_scale=sampling.guidance_scale,
            image_guidance_scale=sampling.image_guidance_scale,
        ).images  # fmt: skip
        return {"pixels": np.stack([np.asarray(picture) for picture in pictures]), "tokens": tokens}

    def states(self, said, tokens: torch.Tensor) -> torch.Tensor:
        """The eight states that predict [IMG0] to [IMG7]; where there is no [IMG0], those before the last."""
        special, made = self.request["special"], [step[-1] for step in said.hidden_states]
        hidden = torch.cat([made[0][:, -9:], *made[1:]], 1)  # from eight before the one that predicts the first token
        rows = []
        for row, words in enumerate(tokens.tolist()):
            length = words.index(special["eos"]) + 1 if special["eos"] in words else len(words)
            found = words.index(special["img0"]) if special["img0"] in words[:length] else len(words)
            first = min(found + 8, length - 1)
            rows.append(hidden[row, first : first + 8])
        return torch.stack(rows)


def eight_bits(pixels: torch.Tensor) -> torch.Tensor:
    """(b, 3, h, w) in [-1, 1] as bytes (b, h, w, 3), as diffusers' image processor makes them."""
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def torch_device(platform: str) -> torch.device:
    """PyTorch's device for JAX's platform.

    Raises:
        RuntimeError: this PyTorch cannot use it.
    """
    if platform == "cpu":
        return torch.device("cpu")
    if platform not in ("gpu", "cuda") or not torch.cuda.is_available():
        raise RuntimeError(f"JAX runs on {platform}, which this PyTorch ({torch.__version__}) cannot use")
    # As JAX multiplies float32 on NVIDIA's tensor cores.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return torch.device("cuda")


def networks(source: Source, dtype: torch.dtype) -> tuple[TorchMGIE, np.ndarray]:
    """The networks with their weights, and the rows (8, d) that are added to the visual states."""
    sizes, found = source.fields(), {}

    def params(part: str) -> dict:
        tree = source.params(np.float32, (part,))
        found.update({"emb": tree["emb"]} if "emb" in tree else {})
        return tree[part]

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        net = TorchMGIE(sizes, alphas_cumprod(source.sizes.schedule))
    finally:
        torch.set_default_dtype(default)
    return net.load(params), np.asarray(found["emb"], np.float32)

"""Whole models by name: the sizes of every part, and how the model is meant to be asked."""

from dataclasses import dataclass, field

from mgie_jax.diffusion.schedule import ScheduleConfig
from mgie_jax.models.clip import CLIPVisionConfig
from mgie_jax.models.edit_head import EditHeadConfig
from mgie_jax.models.llama import LlamaConfig
from mgie_jax.models.mllm import MLLMConfig
from mgie_jax.models.t5 import T5Config
from mgie_jax.models.unet import UNetConfig
from mgie_jax.models.vae import VAEConfig
from mgie_jax.text.prompt import PromptConfig


@dataclass(frozen=True)
class SamplingConfig:
    """What an edit uses where the caller says nothing; the defaults are the released model's.

    `resolution` is the side in pixels of the square whose area an edited picture has.
    """

    resolution: int = 512
    steps: int = 100
    sampler: str = "euler_ancestral"
    guidance_scale: float = 7.5
    image_guidance_scale: float = 1.5
    max_new_tokens: int = 96


@dataclass(frozen=True)
class MGIEConfig:
    """A whole model. Raises ValueError where the sizes of two parts that meet disagree."""

    mllm: MLLMConfig
    edit_head: EditHeadConfig
    unet: UNetConfig
    vae: VAEConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self):
        latents = self.vae.latent_channels
        for what, got, expected in (
            ("edit_head.llm_hidden_size", self.edit_head.llm_hidden_size, self.mllm.llm.hidden_size),
            ("unet.cross_attention_dim", self.unet.cross_attention_dim, self.edit_head.cross_attention_dim),
            ("unet.in_channels", self.unet.in_channels, 2 * latents),
            ("unet.out_channels", self.unet.out_channels, latents),
        ):
            if got != expected:
                raise ValueError(f"{what} is {got}, the rest of the model needs {expected}")

    @property
    def photo_multiple(self) -> int:
        """What both sides of a photo must divide by, in pixels."""
        return self.vae.downsampling * 2 ** (len(self.unet.block_out_channels) - 1)


def mgie_7b() -> MGIEConfig:
    """The published model: CLIP ViT-L/14, LLaMA-7B with MGIE's 32011 rows, Stable Diffusion v1.5."""
    return MGIEConfig(
        mllm=MLLMConfig(
            vision=CLIPVisionConfig(1024, 4096, 24, 16, image_size=224, patch_size=14),
            llm=LlamaConfig(32011, 4096, 11008, 32, 32, 32),
            mm_projector_type="linear",
            im_patch_id=32000,
        ),
        edit_head=EditHeadConfig(),
        unet=UNetConfig(),
        vae=VAEConfig(),
    )


def flan_t5_xxl() -> T5Config:
    """The summarizer that prepares expressive instructions."""
    return T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_decoder_layers=24, num_heads=64
    )


def default() -> MGIEConfig:
    """The bundled model: the same parts, small enough to train and run on two CPU cores."""
    return MGIEConfig(
        mllm=MLLMConfig(
            vision=CLIPVisionConfig(192, 768, 4, 3, image_size=112, patch_size=16),
            llm=LlamaConfig(2048, 256, 704, 4, 4, 4),
            mm_projector_type="linear",
            im_patch_id=2037,
        ),
        edit_head=EditHeadConfig(
            llm_hidden_size=256, d_model=192, nhead=3, num_layers=2, dim_feedforward=512, num_queries=16,
            cross_attention_dim=192,
        ),
        unet=UNetConfig(
            in_channels=16, out_channels=8, block_out_channels=(64, 128, 256), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3,
            attention_head_dim=4, cross_attention_dim=192, norm_num_groups=16, sample_size=32,
        ),
        vae=VAEConfig(
            latent_channels=8, block_out_channels=(32, 32, 64), layers_per_block=1, norm_num_groups=8,
            scaling_factor=1.0, sample_size=128,
        ),
        # Stable Diffusion's betas leave 7 % of the signal at the last timestep. That is enough to read the mean
        # colour of the target off pure noise, which is what most global edits change: trained so, the UNet looked
        # there and not at the guidance, and found nothing there when it drew a picture. These leave 0.2 %.
        schedule=ScheduleConfig(beta_end=0.03, prediction_type="v_prediction"),
        prompt=PromptConfig(model_max_length=256),
        # What gave the least error on training photos: it is the noisy steps that this model was trained most for. With
        # both scales at 1, two of the guidance's three branches have no weight, and are not computed.
        sampling=SamplingConfig(
            resolution=128, steps=2, sampler="euler_ancestral", guidance_scale=1.0, image_guidance_scale=1.0,
            max_new_tokens=64,
        ),
    )  # fmt: skip


def test() -> MGIEConfig:
    """The smallest model with every kind of part, for tests."""
    return MGIEConfig(
        mllm=MLLMConfig(
            vision=CLIPVisionConfig(32, 64, 2, 2, image_size=28, patch_size=14),
            llm=LlamaConfig(320, 32, 64, 2, 4, 2),
            mm_projector_type="linear",
            im_patch_id=309,
        ),
        edit_head=EditHeadConfig(
            llm_hidden_size=32, d_model=32, nhead=2, num_layers=1, dim_feedforward=64, num_queries=7,
            cross_attention_dim=32,
        ),
        unet=UNetConfig(
            block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2, cross_attention_dim=32, norm_num_groups=8, sample_size=16,
        ),
        vae=VAEConfig(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, sample_size=32),
        prompt=PromptConfig(system="", question="{instruction}", model_max_length=384),
        sampling=SamplingConfig(resolution=32, steps=3, max_new_tokens=12),
    )  # fmt: skip


PRESETS = {"mgie_7b": mgie_7b, "default": default, "test": test}

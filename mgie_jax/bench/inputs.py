"""What is measured on: the sizes of a model, its weights, and things to edit and to train on, all from fixed seeds.

Weights are drawn tensor by tensor with NumPy, each from a seed of its own name: any process that asks for them gets
the same, in seconds, where the networks' own initialisation compiles for minutes.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable
from functools import lru_cache

import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from flax.typing import Dtype
from jaxtyping import Float
from PIL import Image

from mgie_jax.models.mgie import MGIE, NUM_IMG_TOKENS
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.text.prompt import IGNORE, PromptTokenizer
from mgie_jax.text.train_tokenizer import train_bpe
from mgie_jax.train.config import default_config
from mgie_jax.train.loss import EditPairBatch, TextBatch
from mgie_jax.train.start import model_config
from mgie_jax.weights.files import load_model_dir, load_tokenizer

PARTS = ("mllm", "edit_head", "unet", "vae")
INSTRUCTION = "make it look like a cold evening in winter"
WORDS = 40  # of a training text, at least twice as many
SEED = 0


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model comes from: a model directory, or the sizes of a preset with random weights.

    Attributes:
        sizes: of the model, with the resolution and the steps that are measured.
        folder: the model directory, or empty.
        request: whence it came, for `as_source` in another process.
    """

    sizes: MGIEConfig
    folder: str
    request: dict

    def fields(self) -> dict:
        """The sizes as nested dicts."""
        return dataclasses.asdict(self.sizes)

    def params(self, dtype: Dtype, parts: tuple[str, ...] = PARTS, place: Callable = np.asarray) -> dict:
        """The parameters {"mllm", "edit_head", "unet", "vae", "emb"}, as far as `parts` names them.

        Args:
            dtype: that they have.
            place: called with each as a NumPy array; `jax.device_put` puts it on a device.

        Raises:
            ModelDirError: the folder is no whole model.
        """
        if self.folder:
            whole = load_model_dir(self.folder, dtype)[1]
            return jax.tree.map(place, {name: tree for name, tree in whole.items() if name in (*parts, "emb")})
        shapes = {name: tree for name, tree in shapes_of(self.sizes).items() if name in parts}
        drawn = {path: place(draw("/".join(path), leaf.shape).astype(dtype)) for path, leaf in _flat(shapes)}
        params = unflatten_dict(drawn)
        if "mllm" in parts:
            params["emb"] = params["mllm"]["model"]["embed_tokens"]["embedding"][-NUM_IMG_TOKENS:]
        return params

    def tokenizer(self) -> PromptTokenizer:
        """The model's; of random weights one of the same size that knows the words of the prompt."""
        if self.folder:
            return load_tokenizer(self.folder, self.sizes)
        prompt, vision = self.sizes.prompt, self.sizes.mllm.vision
        text = f"{prompt.system} USER: {prompt.question} ASSISTANT: {INSTRUCTION}"
        made = train_bpe([text] * 100, self.sizes.mllm.llm.vocab_size, prompt.model_max_length)
        return PromptTokenizer(made, vision.num_patches, prompt)


@lru_cache(maxsize=4)
def shapes_of(sizes: MGIEConfig) -> dict:
    """`MGIE.shapes`, which takes seconds to trace."""
    return MGIE(sizes).shapes()


def as_source(fields: dict) -> Source:
    """The source of which these are `Source.request`."""
    config = default_config()
    config.init, config.model = fields["init"], fields["model"]
    return source(config, fields["size"] and tuple(fields["size"]), fields["steps"])


def source(config: ml_collections.ConfigDict, size: tuple[int, int] | None = None, steps: int | None = None) -> Source:
    """What a training config names: its `init` folder, or its `model` preset.

    Args:
        size: height and width in pixels in place of the model's own resolution.
        steps: of denoising, in place of the model's own.

    Raises:
        ValueError: no such preset or folder, or a size that the networks do not take.
    """
    sizes = model_config(config)
    sampling = sizes.sampling
    if size is not None:
        if any(side < 1 or side % sizes.photo_multiple for side in size):
            raise ValueError(f"--size {size[0]}x{size[1]}: both must be multiples of {sizes.photo_multiple}")
        sampling = dataclasses.replace(sampling, resolution=math.isqrt(size[0] * size[1]))
    if steps is not None:
        sampling = dataclasses.replace(sampling, steps=steps)
    request = {"init": str(config.init), "model": config.model, "size": size, "steps": steps}
    return Source(dataclasses.replace(sizes, sampling=sampling), str(config.init), request)


def draw(name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Random values for the parameter "a/b/c", float32, of a scale at which networks neither die out nor blow up."""
    rng, last = np.random.default_rng([SEED, zlib.crc32(name.encode())]), name.rpartition("/")[2]
    if last == "scale":
        return np.ones(shape, np.float32)
    if "bias" in last:
        return np.zeros(shape, np.float32)
    if last == "kernel":  # by the number of inputs that an output sums over; a scanned layer's leading axis is none
        spread = math.prod(shape[:-1] if len(shape) == 4 else shape[-2:-1]) ** -0.5
    elif last == "in_proj_weight":
        spread = shape[-1] ** -0.5
    else:
        spread = 1.0 if last == "query" else 0.02
    return (rng.random(shape, np.float32) - np.float32(0.5)) * np.float32(spread * math.sqrt(12.0))


def photo(size: tuple[int, int], seed: int = SEED) -> Image.Image:
    """A made-up photo of (width, height): soft shapes with a little grain, which compress as photos do."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.integers(-4, 5, (size[1], size[0], 1), np.int16)
    return Image.fromarray(np.clip(np.asarray(coarse, np.int16) + grain, 0, 255).astype(np.uint8))


def train_batch(config: ml_collections.ConfigDict, sizes: MGIEConfig) -> EditPairBatch:
    """Photos of noise, and texts of random words and of different lengths.

    Raises:
        ValueError: `config.max_tokens` has no room for a text and the photo's patches.
    """
    rng, vision, img0 = np.random.default_rng(SEED), sizes.mllm.vision, sizes.mllm.llm.vocab_size - NUM_IMG_TOKENS
    rows, length = config.batch_size, config.max_tokens
    patches, images = [sizes.mllm.im_patch_id] * vision.num_patches, list(range(img0, img0 + NUM_IMG_TOKENS))
    room = length - len(patches) - len(images) - 2
    if room < 12:
        raise ValueError(f"config.max_tokens is {length}: no room for a text beside {len(patches)} patches")
    ids, labels = np.zeros((rows, length), np.int32), np.full((rows, length), IGNORE, np.int32)
    mask = np.zeros((rows, length), bool)
    for row in range(rows):
        words = list(rng.integers(3, 256, int(rng.integers(min(WORDS, room) // 2, room))))
        text = [1, *words[:5], *patches, *words[5:], *images, 2]
        ids[row, : len(text)], mask[row, : len(text)] = text, True
        labels[row, 6 + len(patches) : len(text)] = text[6 + len(patches) :]
    seen = rng.standard_normal((rows, vision.image_size, vision.image_size, 3)).astype(np.float32)
    source, target = np.tanh(rng.standard_normal((2, rows, config.image_size, config.image_size, 3)))
    return EditPairBatch(
        TextBatch(ids=ids, mask=mask, labels=labels, clip_pixels=seen),
        source.astype(np.float32), target.astype(np.float32),
    )  # fmt: skip


def _flat(tree: dict) -> list[tuple[tuple[str, ...], jax.ShapeDtypeStruct]]:
    return sorted(flatten_dict(tree).items())

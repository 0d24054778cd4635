"""From a config file to a trained model directory: which weights a stage starts from, what it trains, on what."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from mgie_jax.data.cutouts import load_cutouts
from mgie_jax.data.generate import EditPairs, Mix
from mgie_jax.data.photos import load as load_photos
from mgie_jax.models.mgie import MGIE
from mgie_jax.models.presets import PRESETS, MGIEConfig
from mgie_jax.text.prompt import PromptTokenizer
from mgie_jax.text.train_tokenizer import save_tokenizer, train_bpe
from mgie_jax.train.batches import edit_pair_batches, text_batches
from mgie_jax.train.loop import Task, fit
from mgie_jax.train.loss import make_instruction_loss, make_joint_loss
from mgie_jax.train.state import TrainState, merge_params, split_params
from mgie_jax.train.vae import make_vae_task, normalise_latents
from mgie_jax.train.whiten import edit_head_inputs, whiten_llm2hid
from mgie_jax.weights.files import load_model_dir, load_tokenizer, save_model_dir

TOKENIZER_EXAMPLES = 20_000
NORMALISE_ON = 64  # photos
WHITEN_ON = 1024  # examples


@dataclasses.dataclass(frozen=True)
class Start:
    """What a stage begins with: a model directory's content, or a fresh model's."""

    config: MGIEConfig
    params: dict
    tokenizer: PromptTokenizer


def train(config: ml_collections.ConfigDict, workdir: Path) -> Path:
    """Runs one stage to its end and writes `workdir/model`, a whole model directory; returns its path.

    Interrupted, it leaves a checkpoint and no model; started again, it goes on from there.

    Raises:
        ValueError: the config names an unknown stage or model, or `photos` is empty.
        FileNotFoundError: a folder the config names does not exist.
    """
    workdir = Path(workdir)
    if config.stage not in STAGES:
        raise ValueError(f"config.stage is {config.stage!r}; choose one of {', '.join(STAGES)}")
    pairs = training_pairs(config)
    start = load_start(config, pairs)
    task = STAGES[config.stage](config, start, pairs)
    state = fit(task, config, workdir)
    if int(state.step) < config.steps:
        raise KeyboardInterrupt
    return export(config, start, task, state, pairs, workdir / "model")


def training_pairs(config: ml_collections.ConfigDict) -> EditPairs:
    """The generated examples that the config asks for."""
    if not config.photos:
        raise ValueError("config.photos is empty; give a folder made by `mgie data photos` (--config.photos=DIR)")
    return EditPairs(
        list(load_photos(config.photos, "train").values()),
        seed=config.seed,
        size=config.example_size,
        cutouts=load_cutouts(config.cutouts) if config.cutouts else (),
        mix=Mix(*config.mix),
        weights=dict(config.get("weights", {})),
    )


def load_start(config: ml_collections.ConfigDict, pairs: EditPairs) -> Start:
    """The model at `config.init`, or where that is empty a fresh one of the preset `config.model`."""
    if config.init:
        model, params = load_model_dir(config.init)
        params.pop("emb")  # while training, the embedding's own rows serve
        return Start(model, params, load_tokenizer(config.init, model))
    if config.model not in PRESETS:
        raise ValueError(f"config.model is {config.model!r}; choose one of {', '.join(PRESETS)}")
    model = PRESETS[config.model]()
    params = jax.jit(MGIE(model).init)(jax.random.key(config.seed))
    tokenizer = train_bpe(_texts(pairs, model), model.mllm.llm.vocab_size, model.prompt.model_max_length)
    return Start(model, params, PromptTokenizer(tokenizer, model.mllm.vision.num_patches, model.prompt))


def export(
    config: ml_collections.ConfigDict, start: Start, task: Task, state: TrainState, pairs: EditPairs, path: Path
) -> Path:
    """Writes the trained model, averaged weights where there are any, as a model directory."""
    params = {**start.params, **merge_params(state.params if state.ema is None else state.ema, task.frozen)}
    model = start.config
    if config.stage == "vae":
        squares = [_square(photo, model.vae.sample_size) for photo in pairs.photos[:NORMALISE_ON]]
        params["vae"] = normalise_latents(model.vae, params["vae"], squares)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(start.tokenizer.tokenizer, folder)
        save_model_dir(path, model, params, folder, dtype=jnp.dtype(config.export_dtype), overwrite=True)
    return path


def _square(photo: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    return np.asarray(ImageOps.fit(Image.fromarray(photo), (size, size), Image.Resampling.LANCZOS))


def _texts(pairs: EditPairs, model: MGIEConfig) -> list[str]:
    """What the tokenizer is learned from: the generator's sentences, and the prompt around them."""
    small = dataclasses.replace(pairs, size=32, seed=1)
    examples = [small.example(i) for i in range(TOKENIZER_EXAMPLES)]
    prompt = [f"{model.prompt.system} USER: {model.prompt.question}", " ASSISTANT:"]
    # The prompt occurs often enough for its words to become whole tokens.
    return [text for e in examples for text in (e.instruction, e.expressive)] + 3000 * prompt


def _vae(config: ml_collections.ConfigDict, start: Start, pairs: EditPairs) -> Task:
    return make_vae_task(start.config.vae, pairs.photos, config, start.params["vae"])


def _mllm(config: ml_collections.ConfigDict, start: Start, pairs: EditPairs) -> Task:
    params, frozen = split_params({"mllm": start.params["mllm"]}, config.trainable)
    batch = text_batches(pairs, start.tokenizer, start.config, config.batch_size, config.max_tokens)
    return Task(params, frozen, make_instruction_loss(MGIE(start.config)), batch)


def _joint(config: ml_collections.ConfigDict, start: Start, pairs: EditPairs) -> Task:
    whole = start.params
    if config.get("whiten", False):
        texts = text_batches(pairs, start.tokenizer, start.config, 32, config.max_tokens)
        inputs = edit_head_inputs(
            MGIE(start.config), whole, (texts(i) for i in range(WHITEN_ON // 32)), start.tokenizer.img_ids[0]
        )
        llm2hid = whiten_llm2hid(whole["edit_head"]["llm2hid"], inputs)
        whole = {**whole, "edit_head": {**whole["edit_head"], "llm2hid": llm2hid}}
    params, frozen = split_params(whole, config.trainable)
    batch = edit_pair_batches(
        pairs, start.tokenizer, start.config, config.batch_size, config.max_tokens, config.image_size
    )
    loss = make_joint_loss(
        MGIE(start.config), start.tokenizer.img_ids[0], noise_draws=config.noise_draws,
        timestep_power=config.timestep_power,
    )  # fmt: skip
    return Task(params, frozen, loss, batch)


STAGES: dict[str, Callable[[ml_collections.ConfigDict, Start, EditPairs], Task]] = {
    "vae": _vae,
    "mllm": _mllm,
    "joint": _joint,
}

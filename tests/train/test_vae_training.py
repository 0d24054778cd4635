"""Training the autoencoder."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mgie_jax.models import presets
from mgie_jax.models.vae import AutoencoderKL
from mgie_jax.train.config import default_config
from mgie_jax.train.export import export
from mgie_jax.train.loop import Task
from mgie_jax.train.optimizer import make_optimizer
from mgie_jax.train.state import init_state, merge_params, split_params
from mgie_jax.train.step import make_step
from mgie_jax.train.vae import make_vae_task, normalise_latents
from mgie_jax.weights.files import load_model_dir

VAE = presets.test().vae


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 40)[:, None, None] * np.array([1.0, 0.6, 0.3])
    return [np.clip(ramp + rng.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8) for _ in range(4)]


def test_normalised_latents_reconstruct_the_same(tiny_params, photos):
    params = tiny_params["vae"]
    squares = [photo[:32, :32] for photo in photos]
    normal = normalise_latents(VAE, params, squares)
    model, pixels = AutoencoderKL(VAE), jnp.stack(squares).astype(jnp.float32) / 127.5 - 1

    def latents_and_back(params):
        posterior = model.apply({"params": params}, pixels, method="encode")
        return posterior, model.apply({"params": params}, posterior.mode(), method="decode")

    before, restored = latents_and_back(params)
    after, again = latents_and_back(normal)
    np.testing.assert_allclose(again, restored, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(after.mean.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(after.mean.std((0, 1, 2)), 1, rtol=1e-3)
    # The posterior keeps its shape: its spread shrinks as its mean does.
    ratio = np.exp(0.5 * (after.logvar - before.logvar))
    np.testing.assert_allclose(ratio, 1 / before.mean.std((0, 1, 2)) * np.ones_like(ratio), rtol=1e-3)


CONFIG = ml_collections.ConfigDict({
    "seed": 0, "image_size": 16, "batch_size": 4, "max_zoom": 2.0, "color_jitter": 0.5, "lpips_weight": 0.0,
    "kl_weight": 1e-6, "learning_rate": {"default": 2e-3}, "steps": 30, "warmup": 0.1,
    "final_lr_fraction": 0.1, "b2": 0.99, "weight_decay": 0.0, "clip_norm": 1.0,
})  # fmt: skip
DECODER = ("vae/decoder/", "vae/post_quant_conv/")


def trained(task: Task) -> tuple[dict, list[float]]:
    """The parameters after 30 steps of the task, and the losses on the way."""
    optimizer = make_optimizer(CONFIG)
    state = init_state(jax.tree.map(jnp.array, task.params), optimizer, ema=False)
    step, losses = make_step(task.loss, optimizer, 0.0), []
    for number in range(30):
        state, metrics = step(state, task.frozen, task.batch(number, slice(None)).arrays, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    return merge_params(state.params, task.frozen)["vae"], losses


@pytest.mark.parametrize("trainable", [("vae/",), DECODER], ids=["whole", "decoder"])
def test_a_few_steps_lower_the_loss(tiny_params, photos, trainable):
    params, losses = trained(make_vae_task(VAE, photos, CONFIG, tiny_params["vae"], trainable))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, dict(tiny_params["vae"]))
    moved = {name for name, tree in changed.items() if any(jax.tree.leaves(tree))}
    assert moved == ({"decoder", "post_quant_conv"} if trainable == DECODER else set(params))


def test_batches_repeat(tiny_params, photos):
    task = make_vae_task(VAE, photos, CONFIG, tiny_params["vae"])
    whole, again, other = (task.batch(number, slice(None)).arrays for number in (3, 3, 4))
    assert np.array_equal(whole, again) and not np.array_equal(whole, other)
    assert np.array_equal(task.batch(3, slice(2, 4)).arrays, whole[2:])


def test_a_decoders_run_leaves_the_latents_as_they_are(tiny_model_dir, tiny_params, tmp_path):
    config = default_config()
    # No photos are there: latents that stay are not measured.
    config.update({"stage": "vae", "trainable": DECODER, "init": str(tiny_model_dir), "photos": "nowhere"})
    vae = jax.tree.map(np.asarray, dict(tiny_params["vae"]))
    tree, _ = split_params({"vae": {**vae, "decoder": jax.tree.map(lambda x: x + 0.5, vae["decoder"])}}, DECODER)
    export(config, tmp_path, tree, tmp_path / "model")
    _, params = load_model_dir(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, params["vae"], {**vae, **tree["vae"]})

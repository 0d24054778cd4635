"""A UNet that was told what it can know beforehand says what it says otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mgie_jax.diffusion.sample import branches
from mgie_jax.models import ahead, presets
from mgie_jax.models.mgie import MGIE

CONFIG = presets.test().unet
TIMESTEPS = jnp.array([981.0, 403.25, 1.0])


@pytest.fixture(scope="module")
def unet(tiny_params):
    return tiny_params["unet"]


@pytest.fixture(scope="module")
def shown():
    rng = np.random.default_rng(0)
    guidance = rng.normal(size=(2, 5, CONFIG.cross_attention_dim)).astype(np.float32)
    x, photo = jnp.asarray(rng.normal(size=(2, 2, 8, 6, 4)), jnp.float32)
    return x, *branches(*map(jnp.asarray, (guidance[:1].repeat(2, 0), guidance[1:], photo)))


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
def test_equal_to_the_plain_network(unet, shown, dtype, tolerance):
    x, contexts, photos = shown
    model = MGIE(presets.test(), dtype).unet
    same = ahead.guidance_and_photo(CONFIG, unet, contexts, photos, dtype)
    times = ahead.times(CONFIG, unet, TIMESTEPS, dtype)
    rows = jnp.concatenate([x[:, None].repeat(3, 1), photos], axis=-1).reshape(6, *x.shape[1:3], 8)
    plain = jax.jit(lambda t: model.apply({"params": unet}, rows, jnp.full(6, t), contexts.reshape(6, 5, -1)))
    told = jax.jit(lambda time: model.apply({"params": unet, **same, **time}, x))
    for n, timestep in enumerate(TIMESTEPS):
        mine, wanted = told(jax.tree.map(lambda rows, n=n: rows[n], times)), plain(timestep)
        assert mine.shape == wanted.shape and mine.dtype == dtype
        wanted = np.asarray(wanted, np.float32)
        assert np.abs(np.asarray(mine, np.float32) - wanted).max() < tolerance * np.abs(wanted).max()


def test_nothing_is_left_for_the_steps(unet, shown):
    """Every product with the guidance or the time is made beforehand: a step reads none of their weights."""
    x, contexts, photos = shown
    model = MGIE(presets.test()).unet
    same = ahead.guidance_and_photo(CONFIG, unet, contexts, photos)
    time = jax.tree.map(lambda rows: rows[0], ahead.times(CONFIG, unet, TIMESTEPS))
    jaxpr = jax.make_jaxpr(lambda params: model.apply({"params": params, **same, **time}, x))(unet)
    read = {var for eqn in jaxpr.eqns for var in eqn.invars if not isinstance(var, jax.extend.core.Literal)}
    paths = list(flatten_dict(unet, sep="/"))
    unread = {path for path, var in zip(paths, _in_order(unet, jaxpr.jaxpr.invars), strict=True) if var not in read}
    wanted = ("time_embedding/", "time_emb_proj/", "attn2/to_k/", "attn2/to_v/")
    assert unread == {path for path in paths if any(part in path for part in wanted)} != set()


def _in_order(tree, leaves):
    return flatten_dict(jax.tree.unflatten(jax.tree.structure(tree), leaves), sep="/").values()

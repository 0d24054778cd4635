"""Int8: which weights of a model are kept in eight bits, and how its networks multiply by them.

A quantized kernel is a `qwix.QArray` in the place of the array: int8 values, and one float32 scale for each output (for
each layer of a stack), the largest magnitude / 127.5. Networks know nothing of it: `Quantized` runs one with flax's own
interception of methods, under which every `Dense`, `Conv` and `GEGLU` that finds such a kernel multiplies through qwix.

Quantized are LLaMA's projections and the UNet's matmuls and convolutions: nearly all of the weights, and of the
arithmetic that is done again for each token or step. Left alone are word embedding and vocabulary head, the first and
last convolution, and what is computed once per edit (vision tower, edit head, VAE, `ahead`).

qwix's own way, `qwix.quantize_model`, is not used: it replaces functions of JAX in the whole process while a program is
traced, takes the axes of a scanned stack for those of one layer, has no convolution with int8 weights alone, and no
GEGLU whose kernel is cut in two.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from mgie_jax.models.unet import GEGLU
from mgie_jax.sharding import constrain, fit
from mgie_jax.types import HostOrDevice

MODES = ("int8", "int8_weights")
"""int8: weights and, as they come, what they are multiplied with. int8_weights: weights alone."""

KERNELS = (
    r"mllm/model/layers(_\d+)?/(self_attn/[qkvo]_proj|mlp/(gate|up|down)_proj)/kernel",
    # Of cross-attention, keys and values are computed once for all steps.
    r"unet/.*/(attn1/to_[qkv]|attn2/to_q|attn[12]/to_out\.0|ff/net\.(0\.proj|2))/kernel",
    r"unet/.*/(resnets\.\d+/conv(1|2|_shortcut)|attentions\.\d+/proj_(in|out)|(down|up)samplers\.0/conv)/kernel",
)
"""Regular expressions on a parameter's whole "a/b/c" path, of which a quantized one matches one"""


def check(mode: str | None) -> None:
    """Raises ValueError for a mode that there is not, or where qwix is not installed."""
    if mode is None:
        return
    if mode not in MODES:
        raise ValueError(f"quantize {mode!r}: choose one of {', '.join(MODES)}")
    _qwix()


def is_quantized(path: Sequence[str]) -> bool:
    """Whether the parameter at this path is one that is kept in int8."""
    return any(re.fullmatch(pattern, "/".join(path)) for pattern in KERNELS)


def quantize_params(params: PyTree) -> PyTree:
    """A model's parameters, {"mllm", "unet", ...}, with `qwix.QArray`s for what is kept in int8.

    Arrays stay on the devices they are on. For weights too large to be there twice, see `quantized`.

    Raises:
      ValueError: qwix is not installed.
    """

    def leaf(path: tuple, x: Any) -> Any:
        return quantize_kernel(x) if is_quantized([jax.tree_util.keystr((key,), simple=True) for key in path]) else x

    return jax.tree_util.tree_map_with_path(leaf, params)


def quantized(place: Callable[[tuple[str, ...], Any], Array]) -> Callable[[tuple[str, ...], Any], Any]:
    """`place` of `weights.files.load_model_dir`, for int8: each parameter is quantized where it was put, before the
    next is read, so that of one at most there is more than its int8."""

    def put(path: tuple[str, ...], leaf: Any) -> Any:
        x = place(path, leaf)
        return jax.block_until_ready(quantize_kernel(x)) if is_quantized(path) else x

    return put


def quantize_kernel(x: HostOrDevice) -> Any:
    """The `qwix.QArray` of a kernel: (in, out), a stack (layers, in, out) or a convolution's (h, w, in, out).

    On a mesh its values lie as the kernel does, its scales as far as they have the same axes.
    """
    where = getattr(x, "sharding", None)
    if not isinstance(where, NamedSharding):
        return _round_once(x)
    lies = jax.tree.map(lambda y: NamedSharding(where.mesh, fit(where.spec, y.shape, where.mesh)), _shapes(x))
    return jax.jit(_round, out_shardings=lies)(x)


def _round(x: Array) -> Any:
    axes = (0, 2) if x.ndim == 3 else (x.ndim - 1,)
    return _qwix().quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=axes)


_round_once = jax.jit(_round)
_shapes = partial(jax.eval_shape, _round)


@dataclass(frozen=True)
class Quantized:
    """A linen module whose parameters have kernels in int8; to be applied as the module would be.

    Attributes:
      activations: whether what these kernels are multiplied with is rounded to int8 too, with a scale for each token of
        a matmul and each image of a convolution; products are then sums of integers.
    """

    module: nn.Module
    activations: bool

    def init(self, *args: Any, **kwargs: Any) -> Mapping:
        """As the module's: parameters that are not quantized yet (`quantize_params`)."""
        return self.module.init(*args, **kwargs)

    def apply(self, variables: Mapping, *args: Any, **kwargs: Any) -> Any:
        """As the module's."""
        with nn.intercept_methods(partial(_multiply, activations=self.activations)):
            return self.module.apply(variables, *args, **kwargs)


def _multiply(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext, activations: bool):
    """An interceptor: modules with a quantized kernel multiply by it, all others do what they do."""
    qwix, module = _qwix(), context.module
    if context.method_name != "__call__" or not isinstance(module, (nn.Dense, nn.Conv, GEGLU)):
        return call(*args, **kwargs)
    kernel = module.get_variable("params", "kernel")
    if not isinstance(kernel, qwix.QArray):
        return call(*args, **kwargs)
    (x,), bias = args, module.get_variable("params", "bias")
    if isinstance(module, GEGLU):
        return _geglu(module, x, kernel, bias, activations)
    return _layer(module.clone(parent=None, name=None), x, kernel, bias, activations)


def _geglu(module: GEGLU, x: Array, kernel: Any, bias: Array, activations: bool) -> Array:
    def half(columns: slice) -> Array:
        part = jax.tree.map(lambda k: constrain(k[:, columns], PartitionSpec("fsdp", "tensor")), kernel)
        return _layer(nn.Dense(module.width, dtype=module.dtype), x, part, bias[columns], activations)

    return half(slice(module.width)) * nn.gelu(half(slice(module.width, None)), approximate=False)


def _layer(layer: nn.Dense | nn.Conv, x: Array, kernel: Any, bias: Array | None, activations: bool) -> Array:
    """A layer on its own, with qwix's product for its own and the int8 values for its kernel, whose shape it checks."""
    qwix = _qwix()

    def operands(x: Array, axes: Sequence[int]) -> tuple[Any, Any]:
        if activations:
            return qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=axes), kernel
        return x, kernel.astype(x.dtype)

    def dot_general(x: Array, _: Array, dimensions: Any, **kwargs: Any) -> Array:
        lhs, rhs = operands(x, range(x.ndim - 1))
        return qwix.dot_general(lhs, rhs, dimensions).astype(x.dtype)

    def conv_general_dilated(x: Array, _: Array, *args: Any, **kwargs: Any) -> Array:
        lhs, rhs = operands(x, (0,))
        return qwix.conv_general_dilated(lhs, rhs, *args, **kwargs).astype(x.dtype)

    if isinstance(layer, nn.Dense):
        layer = layer.clone(dot_general=dot_general)
    else:
        layer = layer.clone(conv_general_dilated=conv_general_dilated)
    weights = {"kernel": kernel.qvalue} | ({} if bias is None else {"bias": bias})
    return layer.apply({"params": weights}, x)


def _qwix() -> Any:
    try:
        import qwix
    except ImportError as error:
        raise ValueError("int8 needs qwix: pip install 'mgie_jax[int8]'") from error
    return qwix

"""Where arrays live: the mesh, one table of path rules for the parameters, and what follows from them.

The mesh has three axes. `data` holds whole replicas of the parameters and is the only axis that crosses slices;
`fsdp` shards parameters and optimizer state and, as `data` does, the batch; `tensor` shards the arithmetic itself, as
Megatron does (arXiv 1909.08053): the first matmul of a pair by its outputs, the second by its inputs, so that between
them nothing is exchanged.

Everything here is arithmetic on shapes: nothing is moved but by `init_sharded` and `constrain`.
"""

import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from mgie_jax.torus import best_mesh

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
"""The leading axis of a batch and of its activations."""

AnyMesh = Mesh | AbstractMesh

_F, _T, _BOTH = "fsdp", "tensor", ("fsdp", "tensor")
_VISION = "mllm/vision_tower/vision_model/"
_T5 = r"(encoder|decoder)/block/layer\.\d/"
_RESNET = r"unet/.*/resnets\.\d+/"
_TRANSFORMER = r"unet/.*/transformer_blocks\.0/"

RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # Vectors and small tables: less to hold than to gather.
    (r".+/(bias|scale|in_proj_bias|class_embedding)", PartitionSpec()),
    (r"emb|edit_head/query|.+/relative_attention_bias/embedding", PartitionSpec()),
    # LLaMA; scanned layers lead with a layer axis, which stays whole. MGIE's 32011 rows are a prime number and divide
    # on no mesh: the vocabulary's tables are sharded along the hidden width.
    (r"mllm/model/embed_tokens/embedding", PartitionSpec(None, _BOTH)),
    (r"mllm/lm_head/kernel", PartitionSpec(_BOTH, None)),
    (r"mllm/model/layers/(self_attn/[qkv]|mlp/(gate|up))_proj/kernel", PartitionSpec(None, _F, _T)),
    (r"mllm/model/layers/(self_attn/o|mlp/down)_proj/kernel", PartitionSpec(None, _T, _F)),
    # The projector: one linear layer, or two around a GELU.
    (r"mllm/model/mm_projector(/0)?/kernel", PartitionSpec(_F, _T)),
    (r"mllm/model/mm_projector/2/kernel", PartitionSpec(_T, _F)),
    # Vision tower.
    (_VISION + r"embeddings/patch_embedding/kernel", PartitionSpec(None, None, None, _F)),
    (_VISION + r"embeddings/position_embedding/embedding", PartitionSpec(None, _F)),
    (_VISION + r"encoder/layers/(self_attn/[qkv]_proj|mlp/fc1)/kernel", PartitionSpec(None, _F, _T)),
    (_VISION + r"encoder/layers/(self_attn/out_proj|mlp/fc2)/kernel", PartitionSpec(None, _T, _F)),
    # Edit head. Its packed q, k, v are cut apart along the outputs, which therefore stay whole.
    (r"edit_head/(llm2hid|hid2feat|mapper/.*/out_proj)/kernel", PartitionSpec(_F, None)),
    (r"edit_head/mapper/.*/in_proj_weight", PartitionSpec(None, _F)),
    (r"edit_head/mapper/.*/linear1/kernel", PartitionSpec(_F, _T)),
    (r"edit_head/mapper/.*/linear2/kernel", PartitionSpec(_T, _F)),
    # UNet. Convs are height, width, in, out. GEGLU's packed halves are cut apart where they are used;
    # until then its kernel is whole over `tensor`.
    (r"unet/conv_in/kernel", PartitionSpec(None, None, None, _F)),
    (r"unet/conv_out/kernel", PartitionSpec(None, None, _F, None)),
    (r"unet/time_embedding/linear_1/kernel", PartitionSpec(_F, _T)),
    (r"unet/time_embedding/linear_2/kernel", PartitionSpec(_T, _F)),
    (_RESNET + r"conv1/kernel", PartitionSpec(None, None, _F, _T)),
    (_RESNET + r"time_emb_proj/kernel", PartitionSpec(_F, _T)),
    (_RESNET + r"conv2/kernel", PartitionSpec(None, None, _T, _F)),
    (_RESNET + r"conv_shortcut/kernel", PartitionSpec(None, None, None, _F)),
    (r"unet/.*/(down|up)samplers\.0/conv/kernel", PartitionSpec(None, None, None, _F)),
    (r"unet/.*/attentions\.\d+/proj_(in|out)/kernel", PartitionSpec(None, None, None, _F)),
    (_TRANSFORMER + r"attn[12]/to_[qkv]/kernel", PartitionSpec(_F, _T)),
    (_TRANSFORMER + r"attn[12]/to_out\.0/kernel", PartitionSpec(_T, _F)),
    (_TRANSFORMER + r"ff/net\.0\.proj/kernel", PartitionSpec(_F, None)),
    (_TRANSFORMER + r"ff/net\.2/kernel", PartitionSpec(_T, _F)),
    # VAE: frozen, and small beside its activations.
    (r"vae/(post_)?quant_conv/kernel", PartitionSpec()),
    (r"vae/(encoder|decoder)/conv_in/kernel", PartitionSpec(None, None, None, _F)),
    (r"vae/(encoder|decoder)/conv_out/kernel", PartitionSpec(None, None, _F, None)),
    (r"vae/.*/resnets\.\d+/conv(1|2|_shortcut)/kernel", PartitionSpec(None, None, None, _F)),
    (r"vae/.*/(down|up)samplers\.0/conv/kernel", PartitionSpec(None, None, None, _F)),
    (r"vae/.*/attentions\.0/to_([qkv]|out\.0)/kernel", PartitionSpec(_F, None)),
    # T5, a tree of its own.
    (r"shared/embedding", PartitionSpec(_T, _F)),
    (r"lm_head/kernel", PartitionSpec(_F, _T)),
    (_T5 + r"(SelfAttention/[qkv]|EncDecAttention/[qkv]|DenseReluDense/wi_[01])/kernel", PartitionSpec(None, _F, _T)),
    (_T5 + r"(SelfAttention/o|EncDecAttention/o|DenseReluDense/wo)/kernel", PartitionSpec(None, _T, _F)),
)
"""(regular expression on a parameter's whole "a/b/c" path, how it is sharded)"""


def make_mesh(sizes: Sequence[int], devices: Sequence | None = None) -> Mesh:
    """The mesh of `sizes` (data, fsdp, tensor), of which one may be -1: as many as are left.

    Neighbours on `tensor` and `fsdp` are neighbours in the machine, with as many links as there can be (`torus`). Where
    there are several slices, `data` runs over them, and only its traffic crosses the network between them.

    Args:
      devices: all of them by default.

    Raises:
      ValueError: the sizes are not three, do not multiply to the number of devices, or slices do not divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    named = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=False))
    if len(sizes) != 3 or any(size < 1 and size != -1 for size in sizes) or list(sizes).count(-1) > 1:
        raise ValueError(f"mesh {tuple(sizes)}: give {AXES} a size of at least 1 each; one of them may be -1")
    known = -math.prod(sizes) if -1 in sizes else math.prod(sizes)
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise ValueError(f"mesh {named}: {known} does not make {len(devices)} devices; set one size to -1")
    data, fsdp, tensor = (len(devices) // known if size == -1 else size for size in sizes)
    found = sorted({getattr(device, "slice_index", 0) for device in devices})
    if data % len(found):
        raise ValueError(
            f"mesh {named}: data={data} cannot run over {len(found)} slices; make it a multiple of {len(found)}"
        )
    slices = ([device for device in devices if getattr(device, "slice_index", 0) == one] for one in found)
    grid = np.concatenate([_slice_mesh((data // len(found), fsdp, tensor), one) for one in slices])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def _slice_mesh(sizes: tuple[int, ...], devices: Sequence) -> np.ndarray:
    # Splitting a physical axis of the torus is JAX's last resort, where without it there would be no mesh.
    return best_mesh(np.asarray(mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)))


def rule(path: str, rules: Sequence[tuple[str, PartitionSpec]] = RULES) -> PartitionSpec:
    """The one rule for a parameter, as the table has it.

    A quantized kernel (`models.quantize`) is two arrays, `kernel/qvalue` and `kernel/scale`, which lie as it would, the
    scales as far as they have its axes.

    Raises:
      ValueError: no rule matches the whole path, or more than one does.
    """
    whole = re.sub(r"/kernel/(qvalue|scale)$", "/kernel", path)
    found = [(pattern, spec) for pattern, spec in rules if re.fullmatch(pattern, whole)]
    if len(found) != 1:
        matched = " and ".join(pattern for pattern, _ in found) or "none"
        raise ValueError(f"{path}: exactly one sharding rule must match a parameter; matched: {matched}")
    return found[0][1]


def fit(spec: PartitionSpec, shape: Sequence[int], mesh: AnyMesh, name: str = "array") -> PartitionSpec:
    """`spec` as far as `mesh` can have it on an array of `shape`; errors call the array `name`.

    From left to right, a mesh axis that does not divide what is left of its dimension is dropped: the array is
    replicated over it. Axes of one device say nothing and are left out too.

    Raises:
      ValueError: the array has fewer dimensions than `spec`.
    """
    if len(spec) > len(shape):
        raise ValueError(f"{name}: {spec} is for {len(spec)} dimensions, the shape is {tuple(shape)}")
    parts = []
    for size, axes in zip(shape, spec, strict=False):
        kept = []
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            if mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0:
                kept.append(axis)
                size //= mesh.shape[axis]
        parts.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
    while parts and parts[-1] is None:  # one spelling for one sharding: JAX compares specs to find compiled programs
        parts.pop()
    return PartitionSpec(*parts)


def param_sharding(mesh: AnyMesh, path: Sequence[str], shape: Sequence[int]) -> NamedSharding:
    """A parameter's sharding, from its path and shape; `partial(param_sharding, mesh)` serves `weights.rules.sharded`.

    Raises:
      ValueError: not exactly one rule matches, or it is for more dimensions than `shape` has.
    """
    name = "/".join(path)
    return NamedSharding(mesh, fit(rule(name), shape, mesh, name))


def param_shardings(params: PyTree, mesh: AnyMesh) -> PyTree:
    """The tree of shardings of nested dicts of parameters, or of anything with a shape in their place."""
    return jax.tree_util.tree_map_with_path(lambda path, x: param_sharding(mesh, _names(path), x.shape), params)


def state_shardings(state: PyTree, mesh: AnyMesh) -> PyTree:
    """The shardings of a training state: whatever there is of a parameter's path and shape lies where it lies.

    Moments and averages hold trees like the parameters', so the end of their paths tells whose they are. Single numbers
    are replicated.

    Args:
      state: a `TrainState`, or its shapes; only its field `params` is known here by name.

    Raises:
      ValueError: an array of more than one number belongs to no parameter.
    """
    whose = {_names(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(state.params)}

    def place(path: tuple, x) -> NamedSharding:
        names = _names(path)
        ends = (names[i:] for i in range(len(names)))
        owner = next((end for end in ends if whose.get(end) == x.shape), None)
        if owner is not None:
            return param_sharding(mesh, owner, x.shape)
        if math.prod(x.shape) > 1:
            raise ValueError(f"{'/'.join(names)}: shape {x.shape} in the training state is that of no parameter")
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """For every array of a batch: rows over `data` and `fsdp`, whose product must divide them."""
    return NamedSharding(mesh, BATCH)


def init_sharded(
    init: Callable[..., PyTree], mesh: Mesh, *args, shardings: Callable[[PyTree, Mesh], PyTree] = param_shardings
) -> PyTree:
    """`init(*args)`, made where it belongs: no device ever holds more of it than its own part.

    Args:
      shardings: `param_shardings` where `init` makes parameters, `state_shardings` where it makes a training state.
    """
    return jax.jit(init, out_shardings=shardings(jax.eval_shape(init, *args), mesh))(*args)


def constrain(x: Shaped[Array, "..."], spec: PartitionSpec) -> Shaped[Array, "..."]:
    """An activation laid out as `spec`, as far as it fits (`fit`), on the mesh of `jax.set_mesh`; `x` where none is."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, fit(spec, x.shape, mesh))


def on_one_device() -> bool:
    """Whether what is being traced is for one device: no mesh is set, or one of a single device."""
    return jax.sharding.get_abstract_mesh().size <= 1


def on_mesh_of(tree: PyTree) -> AbstractContextManager:
    """`jax.set_mesh` of the mesh that the first array of `tree` lies on; nothing where that is on one device.

    A program on arrays of a mesh is to be traced so: `constrain` and the kernels of attention ask for the mesh.
    """
    sharding = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    return jax.set_mesh(sharding.mesh) if isinstance(sharding, NamedSharding) else nullcontext()


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)

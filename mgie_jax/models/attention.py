"""Attention: one function, and for each kind of machine and shape the program that computes it.

Long attention costs memory, not arithmetic: the logits of the UNet's self-attention at 64x64 latents are 0.5 GiB in
float32 for each row of the batch, written and read several times. The kernels here compute them block by block where
the arithmetic is, and recompute them in the backward pass: splash attention of JAX's Pallas on TPU, cuDNN's on NVIDIA
GPUs (FlashAttention, arXiv 2205.14135 and 2307.08691).
"""

from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import MultiHeadMask
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mgie_jax.sharding import BATCH, fit

BLOCKED_FROM = 128 * 128  # logits; below, a loop over matrices costs more than it saves on a CPU
KERNEL_FROM = 512  # queries and keys; below, a TPU keeps the logits of a few rows in its on-chip memory anyway
LANES = 128  # of a TPU's vector unit; blocks of keys are whole multiples
QUERY_BLOCK, KEY_BLOCK = 512, 1024  # of splash attention, at most
BLOCK_BYTES = 2**19  # of its queries or keys, at most: a TPU v4 has 16 MiB for all that a kernel holds
Queries = Float[Array, "b h q d"]
Keys = Float[Array, "b h2 k d"]  # and values
WIDEST = {"splash": 512, "cudnn": 128}  # head_dim; above 128, cuDNN's backward pass depends on the card


def dot_product_attention(
    q: Float[Array, "b q heads head_dim"],
    k: Float[Array, "b k kv_heads head_dim"],
    v: Float[Array, "b k kv_heads head_dim"],
    mask: Bool[Array, "#b #heads #q #k"] | None = None,
    bias: Float[Array, "#b #heads #q #k"] | None = None,
    scale: float | None = None,
    *,
    valid: Bool[Array, "b k"] | None = None,
    start: int | Int[Array, ""] | None = None,
) -> Float[Array, "b q heads head_dim"]:
    """softmax(scale * q k^T + bias) v, with logits and softmax in float32 whatever the input dtype.

    A query may look where `mask` is True, at keys that are `valid`, and, if `start` is given, no further than its own
    place: the queries stand at start, start + 1... of the keys, causally. One that may look nowhere gets a finite
    average, never NaN. `kv_heads` may be any divisor of `heads` (grouped-query attention). `scale` defaults to
    head_dim ** -0.5.

    A kernel for the machine at hand serves long attention (`KERNEL_FROM`) without `mask` and `bias` and with a `start`
    known when the program is traced, which is why masks are better told by `valid` and `start`. Kernels are not
    partitioned by the compiler: on the mesh of `jax.set_mesh`, each device runs its own on its rows, over `data` and
    `fsdp`, and its heads, over `tensor`, as far as these divide.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    at_once = partial(attend_at_once, scale=scale, start=start, mask=mask, bias=bias)
    programs: dict[str, Callable] = {}
    if mask is None and bias is None:
        if valid is None and start is None and q.shape[2] * k.shape[2] >= BLOCKED_FROM:
            programs["cpu"] = lambda q, k, v, _: attend_blocked(q, *_for_each_query_head(q, k, v), scale)
        if start is None or isinstance(start, int) and start == 0:
            programs |= _kernels(q, k, valid, scale, causal=start is not None)
    y = jax.lax.platform_dependent(q, k, v, valid, **programs, default=at_once) if programs else at_once(q, k, v, valid)
    return jnp.swapaxes(y, 1, 2)


def _kernels(q: Array, k: Array, valid: Array | None, scale: float, causal: bool) -> dict[str, Callable]:
    """The kernels that take these shapes and pay, by platform."""
    width, found = q.shape[-1], {}
    if min(q.shape[2], k.shape[2]) < KERNEL_FROM:
        return found
    if width <= WIDEST["splash"]:
        found["tpu"] = partial(on_mesh, partial(attend_splash, scale=scale, causal=causal))
    # A mask is a bias to cuDNN, of which it computes a gradient too, and not for every shape.
    if valid is None and width <= WIDEST["cudnn"] and _cudnn_takes(q, k, causal):
        found["cuda"] = partial(on_mesh, partial(_attend_cudnn, scale=scale, causal=causal))
    return found


def on_mesh(kernel: Callable, q: Array, k: Array, v: Array, valid: Array | None) -> Array:
    """`kernel(q, k, v, valid)`, heads first, on each device of the mesh of `jax.set_mesh` for its rows and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(q, k, v, valid)
    heads = fit(PartitionSpec(*BATCH, "tensor"), k.shape, mesh)  # what divides k's heads divides q's
    rows = PartitionSpec(*heads[:1])
    where = (heads, heads, heads, rows)
    return jax.shard_map(kernel, mesh=mesh, in_specs=where, out_specs=heads, check_vma=False)(q, k, v, valid)


def attend_splash(
    q: Queries,
    k: Keys,
    v: Keys,
    valid: Bool[Array, "b k"] | None,
    *,
    scale: float,
    causal: bool,
    interpret: bool = False,
) -> Queries:
    """Splash attention, a TPU kernel, of any lengths; `interpret` runs it on other machines, slowly."""
    queries, keys = q.shape[2], k.shape[2]
    if keys % LANES and valid is None:
        valid = jnp.ones((k.shape[0], keys), bool)
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)  # the kernel has no scale
    q, k, v = (_pad(x, axis=2) for x in (q, k, v))
    segments = None
    if valid is not None:  # all queries are of segment 1, and keys of segment 0 are nobody's
        ids = jnp.ones((q.shape[0], q.shape[2]), jnp.int32)
        segments = splash.SegmentIds(q=ids, kv=_pad(valid, axis=1).astype(jnp.int32))
    shape = (q.shape[2], k.shape[2])
    mask = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    row_bytes = -(-q.shape[3] // LANES) * LANES * q.dtype.itemsize
    kernel = splash.make_splash_mha_single_device(
        MultiHeadMask([mask] * q.shape[1]), block_sizes=_blocks(*shape, row_bytes), interpret=interpret
    )
    return jax.vmap(kernel)(q, k, v, segments)[:, :, :queries]


def _blocks(queries: int, keys: int, row_bytes: int) -> splash.BlockSizes:
    of_queries = _block(queries, min(QUERY_BLOCK, BLOCK_BYTES // row_bytes))
    of_keys = _block(keys, min(KEY_BLOCK, BLOCK_BYTES // row_bytes))
    # One kernel for all gradients keeps a dq for every block of keys: worth it where there is one block.
    backward = {"use_fused_bwd_kernel": True} if of_keys == keys else {"block_q_dq": of_queries, "block_kv_dq": of_keys}
    return splash.BlockSizes(
        block_q=of_queries, block_kv=of_keys, block_q_dkv=of_queries, block_kv_dkv=of_keys, **backward
    )


def _block(length: int, most: int) -> int:
    """The largest multiple of `LANES` that divides `length`, itself a multiple, up to `most`."""
    return max(size for size in range(LANES, most + 1, LANES) if length % size == 0)


def _pad(x: Array, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % LANES)
    return jnp.pad(x, widths)


def _attend_cudnn(q: Array, k: Array, v: Array, valid: None, *, scale: float, causal: bool) -> Array:
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    y = jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=causal, implementation="cudnn")
    return jnp.swapaxes(y, 1, 2)


def _cudnn_takes(q: Array, k: Array, causal: bool) -> bool:
    """Whether this process has cuDNN, and it takes such arrays, also to train; JAX keeps the list of its limits."""

    def total(q, k):
        return _attend_cudnn(q, k, k, None, scale=1.0, causal=causal).sum()

    try:
        jax.eval_shape(jax.grad(total), q, k)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def attend_at_once(
    q: Queries,
    k: Keys,
    v: Keys,
    valid: Bool[Array, "b k"] | None,
    *,
    scale: float,
    start: int | Int[Array, ""] | None,
    mask: Array | None,
    bias: Array | None,
) -> Queries:
    """Attention of plain matmuls, which any compiler takes."""
    k, v = _for_each_query_head(q, k, v)
    masks = [] if mask is None else [mask]
    if start is not None:
        masks.append(jnp.arange(k.shape[2]) <= (start + jnp.arange(q.shape[2]))[:, None])
    if valid is not None:
        masks.append(valid[:, None, None, :])
    return _attend(q, k, v, scale, reduce(jnp.logical_and, masks) if masks else None, bias)


def _for_each_query_head(q: Array, *keys_or_values: Array) -> tuple[Array, ...]:
    return tuple(jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in keys_or_values)


def _attend(
    q: Float[Array, "*b q d"], k: Float[Array, "*b k d"], v: Float[Array, "*b k d"], scale: float, mask=None, bias=None
) -> Float[Array, "*b q d"]:
    """The division comes last, where it is smallest."""
    logits = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        logits += bias
    if mask is not None:
        logits = jnp.where(mask, logits, -1e30)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    y = jnp.einsum("...qk,...kd->...qd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (y / weights.sum(-1, keepdims=True)).astype(v.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend_blocked(q: Queries, k: Keys, v: Keys, scale: float) -> Queries:
    """As `_attend`, one head of one row at a time.

    A CPU's cache holds one attention matrix and not a batch of them: forward and backward over 256 tokens are
    about twice as fast as all at once, over 1024 tokens three times.
    """
    return _blocked_forward(q, k, v, scale)[0]


def _blocked_forward(q: Queries, k: Keys, v: Keys, scale: float) -> tuple[Queries, tuple]:
    def one(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        logits = _product("qd,kd->qk", q * jnp.asarray(scale, q.dtype), k)
        most = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - most)
        total = weights.sum(-1, keepdims=True)
        return (_product("qk,kd->qd", weights.astype(v.dtype), v) / total).astype(v.dtype), most + jnp.log(total)

    y, normalizer = _each_head(one, q, k, v)
    return y, (q, k, v, y, normalizer)


def _blocked_backward(scale: float, kept: tuple, g: Queries) -> tuple[Queries, Keys, Keys]:
    """With the weights made anew from the logarithm of their sums, as FlashAttention does it (arXiv 2205.14135,
    appendix B.2), but keys by queries: so no large matrix is transposed, which would take longer than its product."""

    def one(q: Array, k: Array, v: Array, y: Array, normalizer: Array, g: Array) -> tuple[Array, Array, Array]:
        scaled, along = q * jnp.asarray(scale, q.dtype), (g * y).astype(jnp.float32).sum(-1)
        weights = jnp.exp(_product("kd,qd->kq", k, scaled) - normalizer[:, 0])
        of_logits = (weights * (_product("kd,qd->kq", v, g) - along)).astype(q.dtype)
        of_q = (
            jax.lax.optimization_barrier(_product("kd,kq->dq", k, of_logits)).T * scale
        )  # or XLA transposes it after all
        of_k = _product("kq,qd->kd", of_logits, scaled)
        of_v = _product("kq,qd->kd", weights.astype(g.dtype), g)
        return of_q.astype(q.dtype), of_k.astype(k.dtype), of_v.astype(v.dtype)

    return _each_head(one, *kept, g)


attend_blocked.defvjp(_blocked_forward, _blocked_backward)


def _product(sum_of: str, a: Array, b: Array) -> Float[Array, "_ _"]:
    return jnp.einsum(sum_of, a, b, preferred_element_type=jnp.float32)


def _each_head(one: Callable, *xs: Float[Array, "b h ..."]) -> tuple[Array, ...]:
    """`one` of each row's and head's matrices, one after the other."""
    flat = tuple(x.reshape(-1, *x.shape[2:]) for x in xs)
    made = jax.lax.scan(lambda _, x: (None, one(*x)), None, flat)[1]
    return tuple(x.reshape(*xs[0].shape[:2], *x.shape[1:]) for x in made)

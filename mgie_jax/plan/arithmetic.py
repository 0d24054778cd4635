"""FLOPs of single instructions of compiled HLO: two for each multiply-add of a product or a convolution.

XLA for TPUs writes most products of matrices as convolutions too, batches of them as windows over padded and dilated
arrays, of which all but a few places hold zeros that nobody multiplies: only those places of a window count that fall
on an element of the array.
"""

import math
from functools import lru_cache

from mgie_jax.plan.hlo import Computation, Instruction


def flops(computation: Computation, i: Instruction) -> int:
    """Of an instruction that is a `dot` or a `convolution`; of others 0."""
    if i.opcode not in ("dot", "convolution"):
        return 0
    made, (left, right) = i.arrays[0].dims, (computation.instructions[name].arrays[0].dims for name in i.operands[:2])
    if i.opcode == "dot":
        contracted = i.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
        return 2 * math.prod(made) * math.prod(left[int(n)] for n in contracted.split(",") if n)
    of_left, of_right, of_made = i.attribute(r"dim_labels=([\w>-]+)").replace("->", "_").split("_")
    spatial = sorted(label for label in of_made if label.isdigit())
    window = _window(i, len(spatial))
    taps = math.prod(
        _taps(left[of_left.index(label)], made[of_made.index(label)], *window[n]) for n, label in enumerate(spatial)
    )
    return 2 * taps * made[of_made.index("b")] * made[of_made.index("f")] * right[of_right.index("i")]


def _window(i: Instruction, dims: int) -> list[tuple[int, ...]]:
    """(size, stride, padding before, dilation of the array, dilation of the window) of each spatial dimension."""
    said = i.attribute(r"window=\{([^}]*)\}")
    parts = dict(part.split("=") for part in said.split())

    def each(name: str, default: str) -> list[int]:
        return [int(part.split("_")[0]) for part in parts.get(name, "x".join([default] * dims)).split("x") if part]

    names = (("size", "1"), ("stride", "1"), ("pad", "0"), ("lhs_dilate", "1"), ("rhs_dilate", "1"))
    return list(zip(*(each(name, default) for name, default in names), strict=True))


@lru_cache(maxsize=4096)
def _taps(inputs: int, outputs: int, size: int, stride: int, before: int, dilated: int, apart: int) -> int:
    """How many (output, place in the window) pairs fall on one of the inputs and not on padding or between them.

    Output o and place t fall on position o * stride + t * apart - before of the padded array, where the inputs lie
    `dilated` apart from position 0 on.
    """
    step, end, total = math.gcd(stride, dilated), (inputs - 1) * dilated, 0
    period = dilated // step
    for t in range(size):
        shift = t * apart - before
        if shift % step:
            continue
        first, last = max(0, -(shift // stride)), min(outputs - 1, (end - shift) // stride)
        if first > last:
            continue
        # The outputs that fall on an input are every `period`-th: those with o * stride + shift = 0 mod dilated.
        at = (-(shift // step) * pow(stride // step, -1, period)) % period if period > 1 else 0
        total += (last - at) // period - (first - 1 - at) // period
    return total

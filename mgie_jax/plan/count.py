"""FLOPs of a program, counted from its jaxpr.

As in `train.flops`, a multiply-add counts two, and products of matrices and convolutions count, nothing else does; but
here all that the program computes counts, also what a backward pass recomputes. The jaxpr is of the whole program, of
all devices together.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

WHILE, KERNEL = "while", "pallas_call"


def inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs inside an equation."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "jaxpr") or hasattr(item, "eqns"):
                yield getattr(item, "jaxpr", item)


def flops(jaxpr: Any, while_turns: int | None = None) -> int:
    """Two for each multiply-add of every product and convolution of a jaxpr.

    The body of a scan counts as often as it runs, that of a loop whose end depends on data `while_turns` times (or, if
    there is another such loop in it, once: the inner one's turns are all there are), a Pallas kernel once for each step
    of its grid, the body of a `shard_map` once for each shard, and of the branches of a condition only the largest.

    Raises:
        ValueError: there is a loop whose end depends on data, and no `while_turns`.
    """
    return sum(_equation(eqn, while_turns, flops) for eqn in jaxpr.eqns)


def kernel_flops(jaxpr: Any, while_turns: int | None = None) -> int:
    """Those of `flops` that are in Pallas kernels."""
    return sum(
        _equation(eqn, while_turns, flops if eqn.primitive.name == KERNEL else kernel_flops)
        for eqn in jaxpr.eqns
        if eqn.primitive.name not in ("dot_general", "conv_general_dilated")
    )


def _equation(eqn: Any, while_turns: int | None, counted: Callable[[Any, int | None], int]) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        window = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
        # Between the pixels of a dilated input lie zeros: the gradient of a strided convolution.
        return 2 * eqn.outvars[0].aval.size * window // math.prod(params["lhs_dilation"])
    within = [counted(jaxpr, while_turns) for jaxpr in inner(params)]
    if name == "cond":
        return max(within)
    return sum(within) * _times(name, params, while_turns, sum(within))


def _times(name: str, params: dict[str, Any], while_turns: int | None, within: int) -> int:
    if name == "scan":
        return params["length"]
    if name == WHILE:
        if while_turns is None and within:
            raise ValueError("a loop ends by its data; say how often it turns")
        return 1 if any(ends_by_data(jaxpr) for jaxpr in inner(params)) else while_turns or 1
    if name == KERNEL:
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def ends_by_data(jaxpr: Any) -> bool:
    """Whether there is a loop in it whose number of turns is not known before it runs."""
    return any(
        eqn.primitive.name == WHILE or any(ends_by_data(inside) for inside in inner(eqn.params)) for eqn in jaxpr.eqns
    )

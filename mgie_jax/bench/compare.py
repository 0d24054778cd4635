"""Whether two programs have computed the same, as far as their number format and device allow."""

import numpy as np

# Largest |ours - theirs| / |theirs| of whole outputs, by dtype and whether matmuls round their factors (TF32).
TOLERANCES = {("float32", "cpu"): 1e-3, ("float32", "gpu"): 2e-2}
HALF = 1e-1
LOSSES = (1e-4, 1e-3, 1e-3)  # of the first updates; AdamW makes a whole step of a gradient that is only rounding
PIXELS_ALIKE = 0.999  # share of 8-bit values that differ by 1 at most, in float32 on a CPU
PIXELS_APART = 4.0  # mean difference of 8-bit values, otherwise


class Differ(RuntimeError):
    """Two programs that should compute the same do not."""


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """|ours - theirs| / |theirs| over the whole array."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], dtype: str, platform: str) -> tuple[float, str]:
    """(largest relative error, a remark or ""); tokens must be equal, except that rounding to bfloat16 may turn one.

    Where tokens differ so, what has been made with them, "pixels", is not compared.

    Raises:
        Differ: another shape, or further apart than is allowed.
    """
    worst, remark = 0.0, ""
    exact = dtype == "float32" and platform == "cpu"
    tolerance = TOLERANCES.get((dtype, platform), HALF)
    for name in sorted(ours, key=lambda name: name != "tokens"):
        a, b = ours[name], theirs[name]
        if name == "tokens":
            agree = _agreeing(a, b)
            if agree == (len(a), a.shape[1]) and a.shape == b.shape:
                continue
            if exact:
                raise Differ(f"tokens differ: {a.tolist()} and {b.tolist()}")
            remark = f"rounding parts the answers after {agree[1]} tokens"
        elif a.shape != b.shape:
            raise Differ(f"{name} has shape {a.shape} and {b.shape}")
        elif name == "pixels":
            apart = np.abs(a.astype(np.int16) - b.astype(np.int16))
            if not remark and ((apart <= 1).mean() < PIXELS_ALIKE if exact else apart.mean() > PIXELS_APART):
                raise Differ(f"pictures differ, by {apart.mean():.2f} of 255 on average")
        else:
            found = error(a, b)
            worst = max(worst, found)
            if not found <= tolerance:
                raise Differ(f"{name} differs by {found:.1e} of its norm; {tolerance:g} is allowed")
    return worst, remark


def compare_losses(ours: list[float], theirs: list[float], dtype: str) -> float:
    """The largest relative difference of the first updates' losses.

    Raises:
        Differ: it is more than rounding explains.
    """
    errors = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
    allowed = LOSSES if dtype == "float32" else (HALF,) * len(errors)
    if not all(found <= limit for found, limit in zip(errors, allowed, strict=True)):
        raise Differ(f"the losses of the first updates differ: {ours} and {theirs}")
    return max(errors)


def _agreeing(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Rows that both have, and how many tokens of each row are equal before one differs."""
    if len(a) != len(b):
        return 0, 0
    width = min(a.shape[1], b.shape[1])
    equal = (a[:, :width] == b[:, :width]).cumprod(axis=1)
    return len(a), int(equal.sum(axis=1).min())

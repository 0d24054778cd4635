"""What passes for the same, and what does not."""

import numpy as np
import pytest

from mgie_jax.bench.compare import Differ, compare, compare_losses

X = np.linspace(1, 2, 100, dtype=np.float32)
TOKENS = np.array([[5, 6, 7], [5, 8, 9]])
PIXELS = np.full((1, 8, 8, 3), 100, np.uint8)


def test_equal_outputs_have_no_error():
    assert compare({"output": X, "tokens": TOKENS, "pixels": PIXELS}, {"output": X, "tokens": TOKENS, "pixels": PIXELS},
                   "float32", "cpu") == (0.0, "")  # fmt: skip


def test_the_error_is_relative_to_the_norm():
    assert compare({"output": 1.0005 * X}, {"output": X}, "float32", "cpu")[0] == pytest.approx(5e-4, rel=1e-3)


@pytest.mark.parametrize("dtype, platform, allowed", [("float32", "cpu", 1e-3), ("float32", "gpu", 2e-2),
                                                      ("bfloat16", "cpu", 0.1)])  # fmt: skip
def test_what_is_further_apart_is_refused(dtype, platform, allowed):
    compare({"output": (1 + 0.9 * allowed) * X}, {"output": X}, dtype, platform)
    with pytest.raises(Differ, match="output differs by"):
        compare({"output": (1 + 1.1 * allowed) * X}, {"output": X}, dtype, platform)


def test_nothing_passes_for_not_a_number():
    with pytest.raises(Differ):
        compare({"output": X * np.nan}, {"output": X}, "float32", "cpu")


def test_tokens_are_equal_in_float32():
    other = np.array([[5, 6, 7], [5, 8, 1]])
    with pytest.raises(Differ, match="tokens differ"):
        compare({"tokens": TOKENS}, {"tokens": other}, "float32", "cpu")
    with pytest.raises(Differ, match="tokens differ"):
        compare({"tokens": TOKENS}, {"tokens": TOKENS[:, :2]}, "float32", "cpu")
    assert compare({"tokens": TOKENS}, {"tokens": other}, "bfloat16", "cpu")[1] == (
        "rounding parts the answers after 2 tokens"
    )


def test_pictures_are_equal_but_for_a_rounding():
    one, two, few = PIXELS + np.uint8(1), PIXELS + np.uint8(2), PIXELS.copy()
    few[0, 0, 0, 0] = 110
    assert compare({"pixels": one}, {"pixels": PIXELS}, "float32", "cpu") == (0.0, "")
    for other in (two, few):
        with pytest.raises(Differ, match="pictures differ"):
            compare({"pixels": other}, {"pixels": PIXELS}, "float32", "cpu")
        compare({"pixels": other}, {"pixels": PIXELS}, "bfloat16", "gpu")


def test_pictures_of_other_words_are_not_compared():
    turned = TOKENS + np.array([[0, 0, 1], [0, 0, 0]])
    ours, theirs = {"pixels": PIXELS, "tokens": TOKENS}, {"pixels": PIXELS + np.uint8(90), "tokens": turned}
    assert compare(ours, theirs, "bfloat16", "cpu")[1]


def test_other_shapes_are_refused():
    with pytest.raises(Differ, match="shape"):
        compare({"output": X}, {"output": X[:50]}, "float32", "cpu")


def test_losses_may_part_a_little_as_updates_follow():
    assert compare_losses([1.0, 2.0, 3.0], [1.00005, 2.001, 3.002], "float32") == pytest.approx(2 / 3002)
    with pytest.raises(Differ, match="losses"):
        compare_losses([1.0, 2.0, 3.0], [1.0005, 2.0, 3.0], "float32")
    compare_losses([1.0, 2.0, 3.0], [1.01, 2.0, 3.0], "bfloat16")

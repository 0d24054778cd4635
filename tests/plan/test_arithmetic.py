"""FLOPs of the convolutions of HLO: only what is multiplied counts, however XLA has written it."""

import pytest

from mgie_jax.plan.arithmetic import _taps, flops
from mgie_jax.plan.hlo import Module


def counted(inputs, outputs, size, stride, before, dilated, apart):
    """One by one."""
    on_input = {n * dilated for n in range(inputs)}
    return sum(o * stride + t * apart - before in on_input for o in range(outputs) for t in range(size))


@pytest.mark.parametrize("inputs", [1, 5, 8])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_taps_one_by_one(inputs, size):
    for stride in (1, 2, 3, 4):
        for before in (-2, 0, 1, 3):
            for dilated in (1, 2, 3, 6):
                for apart in (1, 2):
                    for outputs in (1, 6, 9):
                        case = (inputs, outputs, size, stride, before, dilated, apart)
                        assert _taps(*case) == counted(*case), case


def one(left, right, made, rest):
    text = f"""HloModule m

ENTRY %main (x: f32[]) -> f32[] {{
  %x = f32[{left}] parameter(0)
  %w = f32[{right}] parameter(1)
  ROOT %y = f32[{made}] {rest}
}}
"""
    module = Module.parse(text)
    return flops(module.entry, module.entry.instructions["y"])


@pytest.mark.parametrize(
    "left, right, made, rest, expected",
    [
        ("4,8", "8,16", "4,16", "dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}", 4 * 8 * 16),
        ("4,8", "8,16", "4,16", "convolution(%x, %w), dim_labels=bf_io->bf", 4 * 8 * 16),
        ("2,9,9,8", "3,3,8,16", "2,7,7,16", "convolution(%x, %w), window={size=3x3}, dim_labels=b01f_01io->b01f",
         2 * 49 * 16 * 9 * 8),
        # The corners of a padded picture have four neighbours, its sides six.
        ("1,4,4,1", "3,3,1,1", "1,4,4,1",
         "convolution(%x, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f", 4 * 4 + 8 * 6 + 4 * 9),
        # A batch of 16 products of 4x8 and 8x32.
        ("16,4,8", "16,8,32", "16,4,32",
         "convolution(%x, %w), window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0io->0bf", 16 * 4 * 8 * 32),
        # The same, reversed and padded to the full width.
        ("16,4,8", "16,8,32", "16,4,32",
         "convolution(%x, %w), window={size=16 pad=15_15 rhs_reversal=1}, dim_labels=0bf_0io->0bf",
         sum(1 for o in range(16) for t in range(16) if 0 <= o + t - 15 < 16) * 4 * 8 * 32),
        ("1,8,8,4", "3,3,4,4", "1,17,17,4",
         "convolution(%x, %w), window={size=3x3 pad=2_2x2_2 lhs_dilate=2x2}, dim_labels=b01f_01io->b01f",
         (8 * 3) ** 2 * 4 * 4),
        ("4,8", "8,16", "4,8", "multiply(%x, %x)", 0),
    ],
    ids=["dot", "product", "convolution", "padded", "batch", "reversed", "transposed", "neither"],
)  # fmt: skip
def test_products_and_convolutions(left, right, made, rest, expected):
    assert one(left, right, made, rest) == 2 * expected

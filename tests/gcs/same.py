"""What the tests of buckets compare."""

import jax
import numpy as np

from mgie_jax.data.records import INFO
from mgie_jax.paths import files


def bytes_of(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def dataset_in(folder):
    (found,) = folder.rglob(INFO)
    return found.parent

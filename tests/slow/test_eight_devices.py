"""Five joint updates and an edit on eight forced CPU devices: every mesh computes what one device does."""

import numpy as np
import pytest

from tests.train.meshes import assert_same_training, on_devices

pytestmark = pytest.mark.slow

MESHES = ("1,1,1", "8,1,1", "1,8,1", "1,1,8", "2,2,2", "2,2,1,2")


@pytest.fixture(scope="module")
def found(tiny_model_dir, tmp_path_factory):
    return on_devices(8, "joint", tiny_model_dir, tmp_path_factory.mktemp("meshes") / "out.npz", MESHES)


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_training_is_that_of_one_device(found, mesh):
    """The last accumulates gradients over two parts of the batch, too."""
    assert_same_training(found[mesh], found["1,1,1"])


@pytest.mark.parametrize("mesh", MESHES[1:5])
def test_the_edited_pictures_are_those_of_one_device(found, mesh):
    one, many = found["1,1,1"], found[mesh]
    np.testing.assert_array_equal(many["tokens"], one["tokens"])
    # A value that float32's rounding moves over a half is rounded to its neighbour.
    assert np.abs(many["pictures"].astype(int) - one["pictures"].astype(int)).max() <= 1
    assert np.std(one["pictures"]) > 1

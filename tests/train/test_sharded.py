"""Where the arrays are changes nothing of what is computed; the joint step does the same in tests/slow."""

import pytest

from tests.train.meshes import assert_same_training, on_devices

MESHES = ("1,1,1", "4,1,1", "1,2,2,2")


@pytest.fixture(scope="module")
def found(tiny_model_dir, tmp_path_factory):
    return on_devices(4, "mllm", tiny_model_dir, tmp_path_factory.mktemp("meshes") / "out.npz", MESHES)


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_every_mesh_trains_the_mllm_as_one_device_does(found, mesh):
    """The last accumulates gradients over two parts of the batch, too."""
    assert_same_training(found[mesh], found["1,1,1"])


def test_a_sharded_state_takes_its_share_of_memory(found):
    held = {mesh: int(found[mesh]["bytes"]) for mesh in MESHES}
    assert held["4,1,1"] == held["1,1,1"]
    assert held["1,2,2,2"] < 0.5 * held["1,1,1"]

"""The mesh and the table of rules.

After a rule was changed on purpose, `python tests/test_sharding.py` writes the golden files anew; read their diff.
"""

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh, PartitionSpec

from mgie_jax import sharding
from mgie_jax.models import presets
from mgie_jax.models.mgie import MGIE
from mgie_jax.models.quantize import is_quantized
from mgie_jax.models.t5 import T5ForConditionalGeneration
from mgie_jax.sharding import AXES, fit, make_mesh, param_sharding, rule
from mgie_jax.train.state import TrainState, init_state

GOLDEN = Path(__file__).parent / "golden" / "sharding"
POD = AbstractMesh((2, 16, 4), AXES)


@cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """{"a/b/c": shape} of a preset's parameters."""
    if name == "flan_t5_xxl":
        ids = jnp.zeros((1, 2), jnp.int32)
        model = T5ForConditionalGeneration(presets.flan_t5_xxl())
        tree = jax.eval_shape(model.init, jax.random.key(0), ids, ids == 0, ids)["params"]
    else:
        tree = MGIE(presets.PRESETS[name]()).shapes()
        tree["emb"] = jax.ShapeDtypeStruct((8, presets.PRESETS[name]().mllm.llm.hidden_size), jnp.float32)
    return {path: x.shape for path, x in flatten_dict(tree, sep="/").items()}


def golden(name: str) -> str:
    """One line a parameter: path, shape, and what each of its axes is split over on a pod."""
    lines = [f"# {name} on a mesh of " + ", ".join(f"{axis}={POD.shape[axis]}" for axis in AXES)]
    for path, shape in sorted(shapes(name).items()):
        spec = param_sharding(POD, path.split("/"), shape).spec
        axes = ["*".join((x,) if isinstance(x, str) else x) if x else "-" for x in spec]
        axes += ["-"] * (len(shape) - len(axes))
        lines.append(f"{path} ({','.join(map(str, shape))}) ({','.join(axes)})")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", [*presets.PRESETS, "flan_t5_xxl"])
def test_every_parameter_has_exactly_one_rule(name):
    for path, shape in shapes(name).items():
        assert len(rule(path)) <= len(shape), path


def test_quantized_kernels_lie_as_kernels_do():
    """Their scales too, where they have the axis: one of size 1 is on every device."""
    found = 0
    for path, shape in shapes("mgie_7b").items():
        if not is_quantized(path.split("/")):
            continue
        whole = param_sharding(POD, path.split("/"), shape).spec
        scales = tuple(size if axis in (len(shape) - 1, len(shape) - 3) and len(shape) != 4 or axis == 3 else 1
                       for axis, size in enumerate(shape))  # fmt: skip
        assert param_sharding(POD, [*path.split("/"), "qvalue"], shape).spec == whole
        lie = param_sharding(POD, [*path.split("/"), "scale"], scales).spec
        assert [*lie, *[None] * 4][len(shape) - 1] == [*whole, *[None] * 4][len(shape) - 1]
        assert all(axis is None for axis, size in zip(lie, scales, strict=False) if size == 1)
        found += 1
    assert found > 200


def test_every_rule_serves_a_parameter_of_full_size():
    paths = [*shapes("mgie_7b"), *shapes("flan_t5_xxl"), "mllm/model/mm_projector/2/kernel"]  # LLaVA-1.5's
    idle = [pattern for pattern, _ in sharding.RULES if not any(re.fullmatch(pattern, path) for path in paths)]
    assert idle == []


@pytest.mark.parametrize(
    "path, rules, words",
    [
        ("unet/new/kernel", sharding.RULES, "^unet/new/kernel: .* matched: none"),
        ("lm_head/kernel/more", sharding.RULES, "matched: none"),  # a rule is for the whole path
        ("a/b", [("a/.*", PartitionSpec()), (".*/b", PartitionSpec())], r"^a/b: .* matched: a/\.\* and \.\*/b"),
    ],
)
def test_a_parameter_without_its_one_rule_is_named(path, rules, words):
    with pytest.raises(ValueError, match=words):
        rule(path, rules)


def test_a_rule_for_more_dimensions_than_the_parameter_has_is_named():
    with pytest.raises(ValueError, match=r"^lm_head/kernel: .*2 dimensions, the shape is \(8,\)"):
        param_sharding(POD, ("lm_head", "kernel"), (8,))


@pytest.mark.parametrize("name", ["mgie_7b", "flan_t5_xxl"])
def test_specs_of_full_size_are_the_golden_ones(name):
    file = GOLDEN / f"{name}.txt"
    assert golden(name) == file.read_text(), f"{file.name} differs: if meant, run `python tests/test_sharding.py`"


def test_fsdp_over_sixteen_devices_holds_a_sixteenth_each():
    mesh, total, held = AbstractMesh((1, 16, 1), AXES), 0, 0
    for path, shape in shapes("mgie_7b").items():
        total += math.prod(shape)
        held += math.prod(param_sharding(mesh, path.split("/"), shape).shard_shape(shape))
    assert total > 8e9 and total / 16 <= held < 1.01 * total / 16


def test_nothing_large_is_replicated_over_fsdp():
    for name in ("mgie_7b", "flan_t5_xxl"):
        for path, shape in shapes(name).items():
            spec = str(param_sharding(POD, path.split("/"), shape).spec)
            assert "fsdp" in spec or math.prod(shape) < 2**19, f"{path} {shape} {spec}"


@pytest.mark.parametrize(
    "spec, shape, fitted",
    [
        (PartitionSpec("fsdp", "tensor"), (32, 8), PartitionSpec("fsdp", "tensor")),
        (PartitionSpec("fsdp", "tensor"), (24, 8), PartitionSpec(None, "tensor")),  # 16 does not divide 24
        (PartitionSpec(("fsdp", "tensor")), (32,), PartitionSpec("fsdp")),  # 4 does not divide what is left, 2
        (PartitionSpec(("fsdp", "tensor")), (8,), PartitionSpec("tensor")),
        (PartitionSpec(None, "tensor"), (3, 3), PartitionSpec()),
        (PartitionSpec("fsdp"), (16, 7, 7), PartitionSpec("fsdp")),
    ],
)
def test_an_axis_that_does_not_divide_is_dropped(spec, shape, fitted):
    assert fit(spec, shape, POD) == fitted


def test_axes_of_one_device_are_left_out():
    assert fit(PartitionSpec("fsdp", "tensor"), (32, 8), AbstractMesh((1, 16, 1), AXES)) == PartitionSpec("fsdp")


@dataclass(frozen=True)
class FakeDevice:
    """What mesh_utils asks of a device of one of several slices."""

    id: int
    slice_index: int
    platform: str = "fake"
    device_kind: str = "fake"

    @property
    def process_index(self) -> int:
        return self.slice_index


def test_only_data_crosses_slices():
    devices = [FakeDevice(i, i % 2) for i in range(16)]
    mesh = make_mesh((-1, 2, 2), devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 2}
    slices = [{device.slice_index for device in replica.flat} for replica in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]
    assert {device.id for device in mesh.devices.flat} == set(range(16))


@pytest.mark.parametrize("sizes, got", [((2, 2, 2), (2, 2, 2)), ((1, -1, 2), (1, 4, 2)), ((-1, 1, 1), (8, 1, 1))])
def test_mesh_sizes(sizes, got):
    mesh = make_mesh(sizes, [FakeDevice(i, 0) for i in range(8)])
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.devices.shape == got


@pytest.mark.parametrize(
    "sizes, slices, words",
    [
        ((2, 2, 1), 1, "data=2, fsdp=2, tensor=1: 4 does not make 8 devices"),
        ((3, -1, 1), 1, "3 does not make 8 devices"),
        ((1, 2), 1, "size of at least 1 each"),
        ((0, 8, 1), 1, "size of at least 1 each"),
        ((-1, -1, 1), 1, "one of them may be -1"),
        ((1, 8, 1), 2, "data=1 cannot run over 2 slices"),
    ],
)
def test_wrong_mesh_sizes_are_refused(sizes, slices, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(sizes, [FakeDevice(i, i % slices) for i in range(8)])


def test_optimizer_state_lies_with_its_parameters():
    kernel, bias = "unet/conv_in/kernel", "unet/conv_in/bias"
    params = {"unet": {"conv_in": {"kernel": jnp.zeros((3, 3, 8, 64)), "bias": jnp.zeros(64)}}}
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform({"a": optax.adamw(1e-3)}, {"unet": "a"}))
    state = jax.eval_shape(lambda p: init_state(p, adam, True), params)
    found = {}
    for path, place in jax.tree_util.tree_leaves_with_path(sharding.state_shardings(state, POD)):
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = place.spec
    kernels = [spec for path, spec in found.items() if path.endswith(kernel)]
    biases = [spec for path, spec in found.items() if path.endswith(bias)]
    assert kernels == [PartitionSpec(None, None, None, "fsdp")] * 4  # parameter, average, two moments
    assert biases == [PartitionSpec()] * 4
    assert len(found) > 8 and found["step"] == PartitionSpec()


def test_optimizer_state_of_no_parameter_is_named():
    state = TrainState(jnp.zeros(()), {"emb": jnp.zeros((8, 4))}, {"rows": {"emb": jnp.zeros((8,))}}, None)
    with pytest.raises(ValueError, match=r"opt_state/rows/emb: shape \(8,\)"):
        sharding.state_shardings(state, POD)


def test_constrain_without_a_mesh_does_nothing():
    x = jnp.ones((4, 3))
    assert sharding.constrain(x, sharding.BATCH) is x


def test_constrain_and_init_on_a_mesh_of_one_device():
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    params = sharding.init_sharded(lambda key: {"emb": jax.random.normal(key, (8, 4))}, mesh, jax.random.key(0))
    assert params["emb"].sharding == param_sharding(mesh, ("emb",), (8, 4))
    with jax.set_mesh(mesh):
        doubled = jax.jit(lambda x: sharding.constrain(2 * x, sharding.BATCH))(params["emb"])
    np.testing.assert_array_equal(doubled, 2 * params["emb"])


def test_programs_are_traced_on_the_mesh_of_their_arrays():
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    there = jax.device_put({"w": np.ones(4)}, sharding.batch_sharding(mesh))
    for tree, found in ((there, mesh.abstract_mesh), ({"w": jnp.ones(4)}, None), ({"w": np.ones(4)}, None)):
        with sharding.on_mesh_of(tree):
            assert jax.sharding.get_abstract_mesh() == found if found else jax.sharding.get_abstract_mesh().empty


def test_random_numbers_do_not_depend_on_the_mesh():
    assert jax.config.jax_threefry_partitionable


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for preset in ("mgie_7b", "flan_t5_xxl"):
        (GOLDEN / f"{preset}.txt").write_text(golden(preset))

"""Linen trees <-> PyTorch keys: exact both ways, and every mismatch named."""

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest

from mgie_jax.weights import tables
from mgie_jax.weights.rules import KeyMismatch, from_torch, to_torch

SHAPES = {
    "conv_in": {"kernel": (3, 3, 4, 8), "bias": (8,)},
    "down_blocks.0": {"resnets.1": {"norm1": {"scale": (8,), "bias": (8,)}}},
    "model": {
        "embed_tokens": {"embedding": (11, 6)},
        "layers": {"self_attn": {"q_proj": {"kernel": (2, 6, 5)}}, "norm": {"scale": (2, 6)}},
        "mm_projector": {"0": {"kernel": (4, 6), "bias": (6,)}},
    },
    "decoder": {"layers.0": {"self_attn": {"in_proj_weight": (9, 3), "out_proj": {"kernel": (3, 3)}}}},
    "encoder": {
        "block": {"layer.0": {"conv": {"kernel": (2, 1, 1, 3, 4)}, "gain": (2,)}},
        "block.0": {"bias": {"embedding": (32, 2)}},
    },
    "query": (1, 7, 3),
    "logit_scale": (),
}
KEYS = {
    "conv_in.weight": (8, 4, 3, 3),
    "conv_in.bias": (8,),
    "down_blocks.0.resnets.1.norm1.weight": (8,),
    "down_blocks.0.resnets.1.norm1.bias": (8,),
    "model.embed_tokens.weight": (11, 6),
    "model.layers.0.self_attn.q_proj.weight": (5, 6),
    "model.layers.1.self_attn.q_proj.weight": (5, 6),
    "model.layers.0.norm.weight": (6,),
    "model.layers.1.norm.weight": (6,),
    "model.mm_projector.0.weight": (6, 4),
    "model.mm_projector.0.bias": (6,),
    "decoder.layers.0.self_attn.in_proj_weight": (9, 3),
    "decoder.layers.0.self_attn.out_proj.weight": (3, 3),
    "encoder.block.0.layer.0.conv.weight": (4, 3, 1, 1),
    "encoder.block.1.layer.0.conv.weight": (4, 3, 1, 1),
    "encoder.block.0.layer.0.gain": (),
    "encoder.block.1.layer.0.gain": (),
    "encoder.block.0.bias.weight": (32, 2),
    "query": (1, 7, 3),
    "logit_scale": (),
}


def tree(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(dtype) if shape else np.asarray(rng.random(), dtype),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def template(dtype=np.float32):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree())


def test_keys_and_shapes_are_pytorchs():
    assert {key: tensor.shape for key, tensor in to_torch(tree()).items()} == KEYS


def test_values_land_where_pytorch_has_them():
    params = tree()
    tensors = to_torch(params)
    assert tensors["conv_in.weight"][7, 3, 2, 1] == params["conv_in"]["kernel"][2, 1, 3, 7]
    stacked = params["model"]["layers"]["self_attn"]["q_proj"]["kernel"]
    assert (tensors["model.layers.1.self_attn.q_proj.weight"] == stacked[1].T).all()
    raw = params["decoder"]["layers.0"]["self_attn"]["in_proj_weight"]
    assert (tensors["decoder.layers.0.self_attn.in_proj_weight"] == raw).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_there_and_back_is_bitwise_exact(dtype):
    params = tree(dtype)
    params["query"].flat[:3] = [np.nan, -0.0, np.inf]
    tensors = to_torch(params)
    back = from_torch(template(dtype), tensors, "net")

    def same(a, b):
        assert a.dtype == b.dtype == dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()

    jax.tree.map(same, params, back)
    again = to_torch(back)
    assert tensors.keys() == again.keys()
    for key in tensors:
        same(tensors[key], again[key])


def test_another_dtype_is_cast_to_the_templates():
    half = from_torch(template(ml_dtypes.bfloat16), to_torch(tree()), "net")
    assert half["query"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(half["query"], tree()["query"].astype(ml_dtypes.bfloat16))


def test_every_mismatch_is_named():
    tensors = to_torch(tree())
    del tensors["query"], tensors["model.layers.1.norm.weight"]
    tensors["stranger.weight"] = np.zeros(3)
    tensors["model.layers.2.norm.weight"] = np.zeros(6)
    tensors["conv_in.bias"] = np.zeros(9)
    with pytest.raises(KeyMismatch) as caught:
        from_torch(template(), tensors, "unet")
    error = caught.value
    assert set(error.missing) == {"query", "model.layers.1.norm.weight"}
    assert set(error.unexpected) == {"stranger.weight", "model.layers.2.norm.weight"}
    assert error.misshaped == {"conv_in.bias": ((8,), (9,))}
    first, *lines = str(error).splitlines()
    assert first.startswith("unet: ") and "2 missing, 2 unexpected, 1 of another shape" in first
    assert "config.json" in first, "the first line says what to do"
    assert "  shape: conv_in.bias: expected (8,), found (9,)" in lines
    assert len(lines) == 5


def test_each_tensor_is_read_once_and_only_if_all_fit():
    tensors, read = to_torch(tree()), []

    class Lazy:
        def __init__(self, key):
            self.key, self.shape, self.dtype = key, tensors[key].shape, tensors[key].dtype

        def __array__(self, dtype=None, copy=None):
            read.append(self.key)
            return tensors[self.key]

    lazy = {key: Lazy(key) for key in tensors}
    with pytest.raises(KeyMismatch):
        from_torch(template(), {key: lazy[key] for key in list(lazy)[1:]}, "net")
    assert read == []
    from_torch(template(), lazy, "net")
    assert sorted(read) == sorted(tensors)


def test_leaves_are_placed_one_by_one():
    placed = {}
    out = from_torch(template(), to_torch(tree()), "net", place=lambda path, leaf: placed.setdefault(path, path))
    assert out["model"]["layers"]["norm"]["scale"] == ("model", "layers", "norm", "scale")
    assert len(placed) == len(jax.tree.leaves(tree()))


def test_a_part_of_a_leaf_is_that_part_of_it():
    """Every window of a few of every parameter: stacked, transposed, neither."""
    leaves = {}
    whole = from_torch(template(), to_torch(tree()), "net", place=lambda path, leaf: leaves.setdefault(path, leaf))
    assert len(leaves) == len(jax.tree.leaves(whole))
    for path, leaf in leaves.items():
        value = np.asarray(leaf)
        windows = [[(0, n), (0, 1), (n // 2, n), (0, n // 2)] for n in leaf.shape]
        for bounds in itertools.product(*windows):
            index = tuple(slice(*bound) for bound in bounds)
            np.testing.assert_array_equal(leaf[index], value[index], err_msg=str((path, index)))
            assert leaf[index].dtype == leaf.dtype


def test_a_part_reads_only_its_own_layers_rows_and_columns():
    read = []

    class Spy:
        def __init__(self, key, array):
            self.key, self.array, self.shape, self.dtype = key, array, array.shape, array.dtype

        def __getitem__(self, index):
            read.append((self.key, self.array[index].shape))
            return self.array[index]

    leaves = {}
    spies = {key: Spy(key, array) for key, array in to_torch(tree()).items()}
    from_torch(template(), spies, "net", place=lambda path, leaf: leaves.setdefault(path, leaf))
    assert read == []
    leaves["model", "layers", "self_attn", "q_proj", "kernel"][1:2, 2:4, 1:5]
    assert read == [("model.layers.1.self_attn.q_proj.weight", (4, 2))]
    read.clear()
    leaves["conv_in", "kernel"][:, :, 1:2, 4:6]
    assert read == [("conv_in.weight", (2, 1, 3, 3))]


def test_a_number_too_large_for_the_template_is_refused():
    tensors = to_torch(tree())
    tensors["model.layers.1.norm.weight"][2] = 1e6
    with pytest.raises(ValueError, match="model.layers.1.norm.weight: 1e.06 is beyond float16"):
        from_torch(template(np.float16), tensors, "net")


def test_integers_are_no_weights():
    tensors = to_torch(tree())
    tensors["query"] = tensors["query"].view(np.int32)
    with pytest.raises(KeyMismatch, match="1 of no floating dtype(?s:.*)dtype: query: expected floats, found int32"):
        from_torch(template(), tensors, "net")


def test_a_kernel_without_a_rule_is_refused():
    with pytest.raises(ValueError, match=r"conv1d\.kernel.*\(3, 4, 5\)"):
        to_torch({"conv1d": {"kernel": np.zeros((3, 4, 5))}})


def test_tables_know_the_files_in_circulation():
    clip, vae, mllm, t5 = tables.VISION_TOWER, tables.VAE, tables.MLLM, tables.T5
    assert clip.network_key("pre_layrnorm.weight") == "vision_model.pre_layrnorm.weight"
    assert clip.network_key("vision_model.pre_layrnorm.weight") == "vision_model.pre_layrnorm.weight"
    for buffer in ("vision_model.embeddings.position_ids", "embeddings.position_ids", "logit_scale"):
        assert clip.network_key(buffer) is None
    assert vae.network_key("encoder.mid_block.attentions.0.query.weight") == (
        "encoder.mid_block.attentions.0.to_q.weight"
    )
    assert vae.network_key("decoder.mid_block.attentions.0.proj_attn.bias") == (
        "decoder.mid_block.attentions.0.to_out.0.bias"
    )
    assert mllm.network_key("model.layers.31.self_attn.rotary_emb.inv_freq") is None
    assert t5.network_key("decoder.embed_tokens.weight") is None
    assert t5.network_key("shared.weight") == "shared.weight"


def test_tied_embeddings_stand_in_and_clashes_are_errors():
    params = {
        "model": {"embed_tokens": {"embedding": np.arange(6.0).reshape(3, 2)}},
        "lm_head": {"kernel": np.zeros((2, 3))},
    }
    loaded = from_torch(params, {"model.embed_tokens.weight": np.arange(6.0).reshape(3, 2)}, "mllm", tables.MLLM)
    np.testing.assert_array_equal(loaded["lm_head"]["kernel"], np.arange(6.0).reshape(3, 2).T)
    twice = {"a.weight": np.zeros(2), "vision_model.a.weight": np.ones(2)}
    with pytest.raises(KeyMismatch, match=r"unexpected: vision_model\.a\.weight"):
        from_torch({"vision_model": {"a": {"scale": np.zeros(2)}}}, twice, "clip", tables.VISION_TOWER)

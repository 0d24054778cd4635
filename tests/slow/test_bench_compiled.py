"""`mgie bench` beside PyTorch in processes of its own, compiled too, and the first edits of new processes."""

import json

import pytest

from mgie_jax.bench.cold import first_edits
from mgie_jax.bench.inputs import source
from mgie_jax.cli import main
from mgie_jax.train.config import default_config

pytestmark = pytest.mark.slow
CONFIG = "configs/test.py"


def bench(capsys, *argv):
    assert main(["bench", *argv, "--config", CONFIG, "--rounds", "2", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_stages_beside_eager_and_compiled(capsys):
    found = bench(capsys, "stages", "--only", "head,decode,save", "--peer", "torch")
    assert found["remarks"] == [] and {"torch", "diffusers", "transformers"} <= set(found["machine"]["versions"])
    decode, head, save = found["rows"]
    assert save["peers"] == {}
    for row in (head, decode):
        assert set(row["peers"]) == {"torch eager", "torch compiled"}
        for peer in row["peers"].values():
            assert peer["error"] < 1e-4 and peer["ratio"]["low"] <= peer["ratio"]["median"] <= peer["ratio"]["high"]
            assert peer["seconds"]["median"] > 0


def test_an_edit_beside_eager(capsys):
    (row,) = bench(capsys, "edit", "--batch", "2", "--peer", "torch-eager")["rows"]
    assert row["name"] == "edit" and set(row["peers"]) == {"torch eager"}


def test_training_beside_eager(capsys):
    found = bench(capsys, "train", "--peer", "torch-eager", "--config.max_tokens=64")
    (row,) = found["rows"]
    assert row["peers"]["torch eager"]["error"] < 1e-3 and row["flops"] > 1e9
    assert all(of["peak"] >= of["running"] > 2**27 for of in found["memory"].values())
    assert set(found["memory"]) == {"jax", "torch eager"}


def test_bfloat16_beside_eager(capsys):
    found = bench(
        capsys, "stages", "--only", "vision,prefill,unet,step,vae", "--peer", "torch-eager", "--dtype", "bfloat16"
    )
    assert all(1e-4 < row["peers"]["torch eager"]["error"] < 0.1 for row in found["rows"] if row["name"] != "vae")


def test_a_compiler_that_is_missing_is_told(capsys, monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    found = bench(capsys, "stages", "--only", "encode", "--peer", "torch")
    (remark,) = found["remarks"]
    assert remark.startswith("left out: torch compiled: ") and "compiler" in remark
    assert set(found["rows"][0]["peers"]) == {"torch eager"}


def test_programs_are_kept_for_the_next_process():
    config = default_config()
    config.model = "test"
    seconds = first_edits(source(config), "float32", 1)
    assert seconds["cold"][0] > seconds["warm"][0] > seconds["first"][0] > 0 < seconds["again"][0]
    assert 0 < seconds["compile"][0] < seconds["cold"][0]

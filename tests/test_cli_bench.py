"""`mgie bench` as a user calls it."""

import io
import json

import pytest
from PIL import Image

from mgie_jax.bench import cold, peer, plot
from mgie_jax.cli import main

CONFIG = "configs/test.py"
QUICK = "head,sampler,save"


def bench(capsys, *argv):
    code = main(["bench", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_stages_with_json_and_plot(capsys, tmp_path):
    picture = tmp_path / "stages.png"
    code, out, _ = bench(capsys, "stages", "--config", CONFIG, "--only", QUICK, "--rounds", "2", "--json", "--plot",
                         str(picture))  # fmt: skip
    assert code == 0 and out.count("\n") == 1
    found = json.loads(out)
    assert [row["name"] for row in found["rows"]] == ["head", "sampler", "save"]
    head, sampler, save = found["rows"]
    assert 0 < head["seconds"]["low"] <= head["seconds"]["median"] <= head["seconds"]["high"] < 10
    assert head["flops"] > 1e5 and head["bytes"] > 1e4 and head["share"] > 0 and head["bound"] in ("matmul", "copy")
    assert sampler["flops"] == 0 and sampler["bound"] == "copy" and save["flops"] is None and save["share"] is None
    rates, machine = found["rates"], found["machine"]
    assert head["share"] == pytest.approx(
        max(head["flops"] / rates["flops"], head["bytes"] / rates["bytes"]) / head["seconds"]["median"]
    )
    assert machine["platform"] == "cpu" and machine["cores"] >= 1 and {"jax", "jaxlib"} <= set(machine["versions"])
    assert (found["what"], found["batch"], found["dtype"], found["rounds"]) == ("stages", 1, "float32", 2)
    assert len(found["date"]) == 25 and found["peer"] is None
    with Image.open(picture) as drawn:
        assert drawn.width > 300


def test_the_table_has_a_line_a_stage(capsys, tiny_model_dir):
    code, out, err = bench(capsys, "stages", "--model", str(tiny_model_dir), "--only", "head,vae", "--batch", "2",
                           "--size", "32x64", "--steps", "2", "--rounds", "1")  # fmt: skip
    lines = out.splitlines()
    assert code == 0 and lines[0] == (
        f"stages of {tiny_model_dir}, float32, batch 2, 32 x 64 pixels, 2 steps of euler_ancestral; 1 rounds"
    )
    table = [line for line in lines if line.startswith("  ")]
    assert [line.split()[0] for line in table] == ["time", "head", "vae"]
    assert "vae" in err  # what was going on
    assert "Large matmul" in out and "roofline" in table[0]


def test_stages_in_int8(capsys, tiny_model_dir):
    told = {}
    for arguments in ((), ("--quantize", "int8_weights")):
        code, out, _ = bench(capsys, "stages", "--model", str(tiny_model_dir), "--only", "prefill", "--rounds", "1",
                             "--json", *arguments)  # fmt: skip
        assert code == 0
        found = json.loads(out)
        told[found["quantize"]] = found["rows"][0]
    assert told[None]["flops"] == told["int8_weights"]["flops"]
    assert told["int8_weights"]["bytes"] < told[None]["bytes"]


def test_the_first_edit_of_a_process_tells_what_compiling_took(capsys, tmp_path, tiny_model_dir, monkeypatch):
    cold.save_atomic(cold.photo((64, 48)), tmp_path / "photo.jpg")
    request = {"source": {"init": str(tiny_model_dir), "model": "", "size": None, "steps": 2}, "dtype": "float32",
               "photo": str(tmp_path / "photo.jpg"), "output": str(tmp_path / "edited.png")}  # fmt: skip
    cold.main(request)
    assert json.loads(capsys.readouterr().out)["compile"] > 0
    assert Image.open(io.BytesIO((tmp_path / "edited.png").read_bytes())).size == (36, 28)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["stages"], "--config FILE, or --model DIR"),
        (["train", "--model", "."], "--config FILE: it says what"),
        (["stages", "--config", "nowhere.py"], "nowhere.py: there is no such config file"),
        (["stages", "--model", "nowhere"], "nowhere: there is no such model directory"),
        (["stages", "--model", "configs"], "model_index.json"),
        (["stages", "--config", CONFIG, "--config.model=tset"], "tset"),
        (["stages", "--config", CONFIG, "--only", "unet,uent"], "there is no stage 'uent'; choose among open, vision"),
        (["edit", "--config", CONFIG, "--only", "unet"], "--only chooses among stages"),
        (["stages", "--config", CONFIG, "--size", "512"], "--size 512: give height and width"),
        (["stages", "--config", CONFIG, "--size", "31x32"], "multiples of 4"),
        (["stages", "--config", CONFIG, "--rounds", "0"], "--rounds must be at least 1"),
        (["stages", "--config", CONFIG, "--batch", "0"], "--batch must be at least 1"),
        (["edit", "--config", CONFIG, "--steps", "0"], "--steps must be at least 1"),
        (["train", "--config", CONFIG, "--steps", "3"], "--steps and --size are of edits"),
        (["train", "--config", f"{CONFIG}:vae"], "config.stage is 'vae'"),
        (["train", "--config", CONFIG, "--quantize", "int8"], "--quantize is of edits"),
        (["edit", "--config", CONFIG, "--quantize", "int8", "--peer", "torch"], "without a peer"),
        (["stages", "--config", CONFIG, "--quantize", "int8", "--only", "warm"], "it leaves compile, cold, warm"),
        (["bake", "--config", CONFIG], "invalid choice: 'bake'"),
        (["stages", "--config", CONFIG, "--peer", "jax"], "invalid choice: 'jax'"),
        (["stages", "--config", CONFIG, "--plot", "stages.jpeg"], "end the name in one of .png .svg .pdf"),
        (["stages", "--config", CONFIG, "--plot", "nowhere/stages.png"], "nowhere does not exist"),
        (["stages", "--config", CONFIG, "--no-such-flag"], "no-such-flag"),
        (["stages", "--model", "configs", "--config.model=test"], "unknown arguments without --config"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, argv, words):
    code, out, err = bench(capsys, *argv)
    assert code == 2 and not out
    assert words in err and err.strip().splitlines()[-1].startswith("mgie: error: ")


def test_missing_packages_are_one_line_and_exit_code_2(capsys, monkeypatch):
    monkeypatch.setattr(peer, "NEEDS", ("no_such_package",))
    code, _, err = bench(capsys, "stages", "--config", CONFIG, "--peer", "torch")
    assert code == 2 and "--peer torch needs no_such_package; pip install 'mgie_jax[bench]'" in err
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    code, _, err = bench(capsys, "stages", "--config", CONFIG, "--plot", "stages.png")
    assert code == 2 and "--plot needs matplotlib: pip install 'mgie_jax[bench]'" in err


def test_an_interrupted_plot_leaves_the_old_one(capsys, tmp_path, monkeypatch):
    picture = tmp_path / "stages.png"
    picture.write_bytes(b"old")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mgie_jax.bench.plot.title", interrupted)
    code, _, err = bench(capsys, "stages", "--config", CONFIG, "--only", "save", "--rounds", "1", "--plot",
                         str(picture))  # fmt: skip
    assert code == 130 and "interrupted" in err
    assert picture.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["stages.png"]

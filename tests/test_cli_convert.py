"""`mgie convert`: from the published files to an edited photo and back; mistakes answered in one line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mgie_jax
from mgie_jax import cli
from mgie_jax.weights import hub
from mgie_jax.weights.files import load_model_dir
from mgie_jax.weights.tensors import ModelDirError, open_tensors
from tests.weights import official_files
from tests.weights.ldm_files import checkpoint
from tests.weights.test_delta import apply_with_torch, llama

ROOT = str(Path(mgie_jax.__file__).parents[1])
COMMANDS = ("from-official", "to-official", "from-ldm", "apply-delta", "check")


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_model_dir):
    folder = tmp_path_factory.mktemp("cli")
    official_files.write_all(folder, tiny_model_dir)
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MGIE_DEBUG", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def official(folder, *more):
    arguments = [f"--{name}={folder / name}" for name in ("llava", "mgie", "clip", "diffusion")]
    return ["convert", "from-official", *arguments, "--nhead", "2", *more]


def run(capsys, *arguments):
    """The JSON a command answers with, which is all there is on stdout, and its stderr."""
    assert cli.main([*arguments, "--json"]) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    return json.loads(out), err


def test_published_files_edit_a_photo_and_come_back(published, capsys, tmp_path):
    answer, err = run(capsys, *official(published, "model"))
    assert set(answer) == {"output", "bytes", "dtypes", "tensors", "parameters", "seconds"}
    assert answer["output"] == "model" and answer["dtypes"].keys() == {"float32"}
    assert set(answer["parameters"]) == {"vision_tower", "mllm", "edit_head", "unet", "vae"}
    files = [path for path in Path("model").rglob("*") if path.is_file()]
    assert answer["bytes"] == sum(path.stat().st_size for path in files)
    assert "Writing: 100%" in err
    report, _ = run(capsys, "convert", "check", "model")
    assert report["good"] and report["special_tokens"]["[IMG7]"] == 319
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8))
    result = mgie_jax.load("model").edit(photo, "make it warmer", steps=2)
    assert result.image.size[0] * result.image.size[1] <= 32 * 48 and result.states.shape == (8, 32)
    answer, err = run(capsys, "convert", "to-official", "model", "back")
    assert "the edit head has 2 heads, the released code 4" in err
    assert answer["parameters"].keys() == {"mllm.pt", "unet.pt"}
    for name in ("mllm.pt", "unet.pt"):
        there, back = torch.load(published / "mgie" / name), torch.load(Path("back") / name)
        assert there.keys() == back.keys() and all(torch.equal(there[key], back[key]) for key in there)


def test_dtype_overwrite_and_words(published, tiny_params, capsys):
    assert cli.main(official(published, "model", "--dtype", "bfloat16")) == 0
    out = capsys.readouterr().out
    assert "Written: model" in out and "unet: " in out and "bfloat16 (" in out
    assert cli.main(official(published, "model")) == 2
    assert "model exists already; choose another name, or --overwrite it" in capsys.readouterr().err
    answer, _ = run(capsys, *official(published, "model", "--overwrite"))
    assert answer["dtypes"].keys() == {"float32"}
    np.testing.assert_array_equal(load_model_dir("model")[1]["emb"], tiny_params["emb"])
    assert sorted(os.listdir(".")) == ["model"]


def test_from_ldm(capsys):
    tensors = checkpoint(torch.float16)
    torch.save({"state_dict": tensors}, "sd.ckpt")
    answer, _ = run(capsys, "convert", "from-ldm", "sd.ckpt", "sd", "--no-ema", "--in-channels", "8")
    assert sorted(os.listdir("sd")) == ["scheduler", "unet", "vae"] and answer["dtypes"].keys() == {"float16"}
    written = np.asarray(open_tensors("sd/unet")["conv_in.weight"])
    np.testing.assert_array_equal(written[:, :4], tensors["model.diffusion_model.input_blocks.0.0.weight"].numpy())
    assert written.shape == (32, 8, 3, 3)
    assert cli.main(["convert", "from-ldm", "sd.ckpt", "other", "--in-channels", "3"]) == 2
    assert "sd.ckpt: model.diffusion_model.input_blocks.0.0.weight has 4 input" in capsys.readouterr().err


def test_apply_delta(capsys):
    base, delta = llama("base", torch.float16), llama("delta", torch.float16, rows=43)
    run(capsys, "convert", "apply-delta", "--base", "base", "--delta", "delta", "llava")
    for key, tensor in apply_with_torch(base, delta).items():
        np.testing.assert_array_equal(np.asarray(open_tensors("llava")[key]), tensor.numpy())


def test_check_ends_with_2_where_it_would_not_load(published, capsys):
    run(capsys, *official(published, "model"))
    assert cli.main(["convert", "check", "model"]) == 0
    assert "good" in capsys.readouterr().out
    file = Path("model/unet/diffusion_pytorch_model.safetensors")
    file.write_bytes(file.read_bytes()[:-4])
    assert cli.main(["convert", "check", "model"]) == 2
    assert "unet/diffusion_pytorch_model.safetensors" in capsys.readouterr().out
    assert cli.main(["convert", "check", "model", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["good"] is False


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("", "COMMAND"),
        ("from-tensorflow", "invalid choice"),
        ("from-official out", "--mgie"),
        ("from-official --mgie a --clip b --diffusion c out", "'a' is missing; give a path, or a repository"),
        ("from-official --mgie a/b --clip b --diffusion c out", "a/b is not in the cache"),
        ("from-official --mgie a/b@v1 --clip b --diffusion c out", "a/b@v1 is not in the cache"),
        ("from-official --mgie . --clip . --diffusion . --nhead 0 out", "--nhead 0: must be at least 1"),
        ("from-official --mgie . --clip . --diffusion . out", "neither mllm.pt and unet.pt"),
        ("to-official nowhere out", "'nowhere' is missing"),
        ("to-official . out", "model_index.json"),
        ("to-official . out --dtype int8", "invalid choice"),
        ("from-ldm nowhere.ckpt out", "nowhere.ckpt: there is no such file"),
        ("from-ldm owner/name/sd.ckpt out", "owner/name is not in the cache"),
        ("from-ldm notes.txt out", "notes.txt is no weights file"),
        ("from-ldm sd.ckpt out --in-channels 0", "--in-channels 0: must be at least 1"),
        ("from-ldm sd.ckpt out", "sd.ckpt is not a whole PyTorch file"),
        ("from-ldm sd.ckpt full", "full exists already"),
        ("from-ldm sd.ckpt full --overwrite", "full is no folder that mgie convert writes"),
        ("apply-delta --base . out", "--delta"),
        ("apply-delta --base full --delta . out", "full: cannot tell which file holds the weights"),
        ("apply-delta --base llama --delta llama llama --overwrite", "llama is, or holds, the source llama"),
        ("check nowhere", "'nowhere' is missing"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(capsys, arguments, words):
    Path("full").mkdir()
    Path("full/photo.jpg").touch()
    Path("llama").mkdir()
    Path("llama/config.json").write_text("{}")
    Path("sd.ckpt").write_bytes(b"PK\x03\x04 cut short")
    Path("notes.txt").touch()
    before = sorted(Path().rglob("*"))
    assert cli.main(["convert", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and last.startswith("mgie: error: ") and words in last
    assert sorted(Path().rglob("*")) == before


def test_repositories_are_pinned_and_give_their_weights_once(monkeypatch, capsys):
    """Of safetensors and their pickled twins only one is fetched; a revision follows an @."""
    llama("base", torch.float16), llama("delta", torch.float16, rows=43)
    Path("bin").mkdir()
    Path("bin/config.json").write_text(Path("base/config.json").read_text())
    torch.save({key: torch.tensor(np.asarray(t)) for key, t in open_tensors("base").items()}, "bin/pytorch_model.bin")
    calls = []

    def fetch(source, revision=None, patterns=None):
        calls.append((source, revision, tuple(patterns or ())))
        return Path({"meta/llama": "bin", "liu/llava-delta": "delta"}[source])

    monkeypatch.setattr(hub, "fetch", fetch)
    run(capsys, "convert", "apply-delta", "--base", "meta/llama", "--delta", "liu/llava-delta@v1.1", "out")
    assert [(source, revision) for source, revision, _ in calls] == [
        ("meta/llama", None), ("meta/llama", None), ("liu/llava-delta", "v1.1")
    ]  # fmt: skip
    assert "pytorch_model*.bin" in calls[1][2] and not any("bin" in p for p in calls[0][2] + calls[2][2])
    torch.save({"state_dict": checkpoint(ema=False)}, "bin/ip2p.ckpt")
    calls.clear()
    run(capsys, "convert", "from-ldm", "meta/llama/ip2p.ckpt@main", "sd")
    assert calls == [("meta/llama", "main", ("ip2p.ckpt",))]
    assert cli.main(["convert", "from-ldm", "meta/llama/other.ckpt", "sd2"]) == 2
    assert "meta/llama has no file other.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["convert", command, "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out and f"mgie convert {command} " in out


def test_no_default_names_a_vanished_repository():
    for path in Path(ROOT, "mgie_jax").rglob("*.py"):
        assert "runwayml" not in path.read_text()


def test_a_killed_conversion_leaves_no_model(published, tmp_path):
    """Killed while it writes, without any clean-up: what is left has another name, and loads as nothing."""
    code = """
import sys, time
from mgie_jax.weights import safetensors_files
blocks = safetensors_files.blocks
def slow(tensor, *args):
    yield from blocks(tensor, *args)
    print("writing", file=sys.__stdout__, flush=True)  # the command's own stdout is the answer's
    time.sleep(0.2)
safetensors_files.blocks = slow
from mgie_jax import cli
sys.exit(cli.main(sys.argv[1:]))
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *official(published, "model")], env=env, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "writing\n"
    time.sleep(0.3)
    process.kill()
    process.wait(timeout=30)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".model.new-")
    for name in ("model", left.name):
        with pytest.raises(ModelDirError):
            load_model_dir(name)

"""launch/pod.py: slices as Google Cloud has them, and what is refused; shell scripts by shellcheck."""

import argparse
import importlib.util
import re
import runpy
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import setuptools

from mgie_jax.plan.machines import MACHINES, parse_topology
from tests.launch.tools import LAUNCH, ROOT, has

pytestmark = pytest.mark.skipif(not has(), reason="not a source tree")


@pytest.fixture(scope="module")
def pod():
    spec = importlib.util.spec_from_file_location("launch_pod", LAUNCH / "pod.py")
    module = sys.modules["launch_pod"] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "chips", "hosts", "machine", "flags"),
    [
        ("v4:2x2x1", 4, 1, "ct4p-hightpu-4t", ["--type=v4", "--topology=2x2x1"]),
        ("v5e:1x1", 1, 1, "ct5lp-hightpu-1t", ["--accelerator-type=v5litepod-1"]),
        ("v5e:2x2", 4, 1, "ct5lp-hightpu-4t", ["--accelerator-type=v5litepod-4"]),
        ("v5e:4x4", 16, 4, "ct5lp-hightpu-4t", ["--accelerator-type=v5litepod-16"]),
        ("v5e:16x16", 256, 64, "ct5lp-hightpu-4t", ["--accelerator-type=v5litepod-256"]),
        ("v5p:2x2x4", 16, 4, "ct5p-hightpu-4t", ["--type=v5p", "--topology=2x2x4"]),
        ("v5p:4x8x8", 256, 64, "ct5p-hightpu-4t", ["--type=v5p", "--topology=4x8x8"]),
        ("v6e:4x4", 16, 4, "ct6e-standard-4t", ["--accelerator-type=v6e-16"]),
        ("v7x:2x2x2", 8, 2, "tpu7x-standard-4t", ["--type=tpu7x", "--topology=2x2x2"]),
    ],
)
def test_slices(pod, name, chips, hosts, machine, flags):
    slice = pod.parse_slice(name)
    assert (slice.chips, slice.hosts, slice.machine, slice.tpu_vm_flags) == (chips, hosts, machine, flags)
    assert slice.hosts * slice.chips_per_host == chips and machine.endswith(f"-{slice.chips_per_host}t")


@pytest.mark.parametrize(
    ("name", "words"),
    [("v3:2x2", "v4, v5e, v5p, v6e"), ("4x4", "GENERATION:SHAPE"), ("v5e", "2x2, 2x4"), ("v5e:4x2", "2x2, 2x4, 4x4"),
     ("v5e:2x2x4", "2x2, 2x4"), ("v5p:4x4", "A <= B <= C"), ("v5p:8x4x4", "A <= B <= C"), ("v5p:0x4x4", "multiples"),
     ("v4:3x4x4", "multiples of 4")],
)  # fmt: skip
def test_no_such_slice(pod, name, words):
    with pytest.raises(argparse.ArgumentTypeError, match=words):
        pod.parse_slice(name)


def test_what_is_planned_can_be_launched(pod):
    names = [
        f"{name}:{'x'.join(map(str, shape))}"
        for name, machine in MACHINES.items() if machine.tpu for shape in machine.shapes
    ]  # fmt: skip
    assert len(names) > 40 and all(pod.parse_slice(name).chips == prod(parse_topology(name).shape) for name in names)


def test_extras_that_are_installed_exist(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    text = "".join((LAUNCH / file).read_text() for file in ("tpu_vm.py", "Dockerfile", "slurm.sh"))
    named = re.findall(r'--extras", default="([\w,]+)"|^ARG EXTRAS=(.+)$| extras=(\w+) ', text, re.M)
    assert len(named) == 3
    assert {extra for names in named for extra in "".join(names).split(",")} <= set(given["extras_require"])


@pytest.mark.parametrize(
    ("command", "added"),
    [("mgie train --config a", "--config.distributed=True"), ("mgie prepare a b", "--distributed"), ("mgie plan", None),
     ("mgie train --config.distributed=False", None), ("mgie prepare --distributed", None), ("python train", None),
     ("mgie", None)],
)  # fmt: skip
def test_the_flag_that_joins_processes(pod, command, added):
    assert pod.joined(command.split()) == command.split() + ([added] if added else [])


@pytest.mark.parametrize("script", ["tpu_vm.py", "gke.py"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "v5e:5x5"], "'v5e:5x5': shapes of v5e are 1x1, 2x2"),
        (["--slices", "0"], "--slices: '0' is no number from 1 up"),
        (["--name", "My_Run"], "'My_Run': up to 40 lower-case letters"),
        (["--what"], "unrecognized arguments: --what"),
        (["--"], "give the command after --"),
    ],
)
def test_mistakes_are_one_line(site, script, arguments, words):
    site.git()
    more = ["--zone", "us-west4-a"] if script == "tpu_vm.py" else ["--image", "image"]
    given = ["--name", "run", "--topology", "v5e:4x4", *more, *arguments]
    if "--" not in arguments:
        given += ["--", "mgie", "train"]
    run = site.run(script, *given)
    assert run.returncode == 2 and words in run.stderr and run.stderr.count("\n") == 1 and site.calls == []
    assert run.stderr.startswith(f"{script}: error: ") and run.stderr.endswith(f"(see: {script} --help)\n")


@pytest.mark.parametrize("script", ["tpu_vm.py", "gke.py", "slurm.sh"])
def test_help_has_an_example(site, script):
    run = site.run(script, "--help")
    assert run.returncode == 0 and f"launch/{script} --" in run.stdout and "-- \\\n" in run.stdout


@pytest.mark.parametrize(
    ("script", "program", "arguments"),
    [
        ("tpu_vm.py", "gcloud", ["--name", "run", "--topology", "v5e:4x4", "--zone", "us-west4-a"]),
        ("gke.py", "kubectl", ["--name", "run", "--topology", "v5e:4x4", "--image", "image"]),
        ("slurm.sh", "sbatch", []),
    ],
)
def test_a_missing_program_is_named(site, script, program, arguments):
    site.git()
    site.only("bash", "env", "dirname", "git")
    run = site.run(script, *arguments, "--", "mgie", "train")
    assert run.returncode == 2 and f"{program}: there is no such command" in run.stderr


def test_shell_scripts_by_shellcheck():
    scripts = sorted(map(str, LAUNCH.glob("*.sh")))
    assert {Path(script).name for script in scripts} >= {"slurm.sh", "host.sh", "default_model.sh"}
    run = subprocess.run([Path(sys.executable).with_name("shellcheck"), *scripts], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout

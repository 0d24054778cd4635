"""docs/pod.md: every `mgie` command parses, every file of launch/ is there and takes the flags it is given."""

import re
import shlex
import subprocess
import sys

import pytest

from mgie_jax.cli import COMMANDS, _parse
from mgie_jax.cli.train import read_config
from tests.launch.tools import LAUNCH, ROOT, has

PAGE = ROOT / "docs" / "pod.md"
pytestmark = pytest.mark.skipif(not (has("bash", "git") and PAGE.is_file()), reason="not a source tree")


def lines():
    """The page's shell commands, continued lines joined."""
    blocks = re.findall(r"^```shell\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def mgie_commands():
    """Those of `mgie`, also where a launcher or xpk is to start them, as lists of arguments."""
    found = []
    for line in lines():
        words = shlex.split(line)
        for start in (i + 1 for i, word in enumerate(words) if word == "mgie" and (i == 0 or words[i - 1] == "--")):
            found.append(words[start:])
        found += [shlex.split(word)[1:] for word in words if word.startswith("mgie ")]
    return found


@pytest.mark.parametrize("arguments", mgie_commands() if PAGE.is_file() else [], ids=" ".join)
def test_mgie_commands_parse(arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = _parse(arguments)
    if args.command == "train":
        config = read_config(args.config, args.more)
        assert config.distributed in (False, True) and (config.data or config.photos)


def test_the_page_has_every_step():
    used = {arguments[0] for arguments in mgie_commands()}
    assert used >= {"plan", "convert", "data", "train", "export", "edit", "curves"} and used <= set(COMMANDS)


def test_files_of_launch_exist():
    named = set(re.findall(r"launch/[\w.]+", PAGE.read_text()))
    assert {"launch/tpu_vm.py", "launch/gke.py", "launch/slurm.sh", "launch/local.py"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("script", ["tpu_vm.py", "gke.py", "slurm.sh"])
def test_launchers_take_their_flags(site, script):
    (line,) = (line for line in lines() if re.match(rf"(python )?launch/{script}", line))
    site.git()
    words = shlex.split(re.sub(r"\$\w+", "some-value", line))
    words = [sys.executable, *words[1:]] if words[0] == "python" else words
    words.insert(words.index("--"), "--dry-run")
    words = [str(site.checkout / word) if word.startswith("launch/") else word for word in words]
    run = subprocess.run(words, cwd=LAUNCH, env=site.env, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "configs/mgie_7b.py" in run.stdout, run.stderr
    assert site.calls == []


def test_the_page_is_read_whole():
    """Blocks that are no shell commands would be checked by nothing."""
    assert set(re.findall(r"^```(\w*)$", PAGE.read_text(), re.M)) == {"shell", ""}
    subprocess.run(["bash", "-n"], input="\n".join(lines()), text=True, check=True)

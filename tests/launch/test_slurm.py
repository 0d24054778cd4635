"""launch/slurm.sh: what it submits, and, run as the job, what it does with each end of its command."""

import os
import shlex
import sys

import pytest

from tests.launch.tools import has

pytestmark = pytest.mark.skipif(not has("bash"), reason="not a source tree on a machine with bash")

COMMAND = ["mgie", "train", "--config", "configs/mgie_7b.py", "--workdir", "/shared/o ut"]
JOB = {"SLURM_JOB_ID": "7"}


@pytest.fixture
def site(site):
    # The installation: a Python that makes the folder of a virtual environment, and a pip that works.
    pip = 'mkdir -p "$3/bin"; ln -s "$(type -P true)" "$3/bin/python"'
    site.fake("python3", f'[ "$2" != venv ] || {{ {pip}; }}')
    return site


def submitted(site):
    (call,) = (call for call in site.calls if call.startswith("sbatch"))
    words = shlex.split(call)
    script = words.index(str(site.checkout / "launch" / "slurm.sh"))
    return dict(word.partition("=")[::2] for word in words[1:script]), words[script + 1 :]


def test_what_is_submitted(site):
    site.fake("sbatch", "echo Submitted batch job 7")
    run = site.run("slurm.sh", "--nodes=2", "--gpus=4", "--partition=gpu", "--signal=TERM@300", "--", *COMMAND)
    assert run.returncode == 0 and run.stdout == "Submitted batch job 7\n"
    options, job = submitted(site)
    # A process for each GPU, and each sees all GPUs of its node: so JAX expects it of SLURM.
    assert options["--nodes"] == "2" and options["--ntasks-per-node"] == options["--gpus-per-node"] == "4"
    assert not {"--gpus-per-task", "--gpu-bind"} & set(options)
    assert "--requeue" in options and options["--partition"] == "gpu" and options["--signal"] == "TERM@300"
    venv = site.checkout / ".venv-cuda"
    assert job == ["--job", str(venv), *COMMAND, "--config.distributed=True"]
    assert site.calls[0] == f"python3 -m venv {venv}" and (venv / ".installed").exists()


def test_installed_once_and_again_when_its_requirements_have_changed(site):
    site.fake("sbatch")
    for _ in range(2):
        assert site.run("slurm.sh", "--", *COMMAND).returncode == 0
    assert [call.split()[0] for call in site.calls] == ["python3", "sbatch", "sbatch"]

    later = (site.checkout / ".venv-cuda" / ".installed").stat().st_mtime + 10
    os.utime(site.checkout / "setup.py", (later, later))
    (site.checkout / ".venv-cuda" / "bin" / "python").unlink()
    assert site.run("slurm.sh", "--", *COMMAND).returncode == 0
    assert [call.split()[0] for call in site.calls][3:] == ["python3", "sbatch"]


def test_a_failed_installation_submits_nothing(site):
    site.fake("sbatch")
    site.fake("python3", "exit 1")
    assert site.run("slurm.sh", "--", *COMMAND).returncode == 1
    assert not any(call.startswith("sbatch") for call in site.calls)
    assert not (site.checkout / ".venv-cuda" / ".installed").exists()


def test_dry_run(site):
    run = site.run("slurm.sh", "--nodes=2", "--gpus=8", "--extras=cuda,train", "--dry-run", "--", *COMMAND)
    assert run.returncode == 0 and site.calls == []
    root = site.checkout
    venv = f"{root}/.venv-cuda"
    assert [shlex.split(line) for line in run.stdout.splitlines()] == [
        ["python3", "-m", "venv", venv],
        [f"{venv}/bin/python", "-m", "pip", "install", "--quiet", "--editable", f"{root}[cuda,train]"],
        ["touch", f"{venv}/.installed"],
        ["sbatch", "--job-name=mgie", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--exclusive",
         "--requeue", "--signal=TERM@120", "--open-mode=append", f"{root}/launch/slurm.sh", "--job", venv, *COMMAND,
         "--config.distributed=True"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nodes=0", "--", "ls"], "--nodes=0 --gpus=8: numbers from 1 up"),
        (["--gpus=two", "--", "ls"], "--gpus=two: numbers from 1 up"),
        (["--nodes", "2", "--", "ls"], "2: options are written --OPTION=VALUE"),
        (["--gpus-per-task=1", "--", "ls"], "--gpus-per-task=1: processes and GPUs are for --nodes and --gpus"),
        (["--nodes=2"], "give the command after --"),
        (["--nodes=2", "--"], "give the command after --"),
    ],
)
def test_mistakes_are_one_line(site, arguments, words):
    site.fake("sbatch")
    run = site.run("slurm.sh", *arguments)
    assert run.returncode == 2 and words in run.stderr and run.stderr.count("\n") == 1 and site.calls == []
    assert run.stderr.startswith("slurm.sh: error: ")


def job(site, code, state="RUNNING", **env):
    """Runs the script as SLURM would on a job's first node, with a command that ends so, in a job of this state."""
    site.fake("srun", f"env >$FAKE/env; exit {code}")
    site.fake("squeue", f"echo {state}")
    site.fake("scontrol")
    return site.run("slurm.sh", "--job", "/shared/venv", *COMMAND, env=JOB | env)


def test_a_good_end(site):
    run = job(site, 0, SLURM_CPUS_PER_TASK="12")
    assert run.returncode == 0 and len(site.calls) == 1
    words = shlex.split(site.calls[0])
    assert words[0] == "srun" and words[words.index("--") + 1 :] == COMMAND
    assert "--kill-on-bad-exit=0" in words
    env = dict(line.partition("=")[::2] for line in (site.folder / "env").read_text().splitlines())
    assert env["PATH"].startswith("/shared/venv/bin:") and env["SRUN_CPUS_PER_TASK"] == "12"


def test_told_to_leave_it_is_queued_again(site):
    run = job(site, 75)
    assert run.returncode == 75 and site.calls[-1] == "scontrol requeue 7"
    assert job(site, 0).returncode == 0 and site.calls[-1].startswith("srun")


@pytest.mark.parametrize(("code", "state"), [(1, "RUNNING"), (2, "RUNNING"), (3, "RUNNING"), (137, "RUNNING"),
                                             (75, "COMPLETING"), (75, "CANCELLED")])  # fmt: skip
def test_any_other_end_is_for_good(site, code, state):
    assert job(site, code, state).returncode == code
    assert not any(call.startswith("scontrol") for call in site.calls)


@pytest.mark.skipif(sys.platform != "linux", reason="SLURM's own way with signals, on Linux")
def test_the_signal_sent_to_all_leaves_srun_its_say(site):
    site.fake("srun", "kill -TERM $PPID; sleep 0.2; exit 75")
    site.fake("squeue", "echo RUNNING")
    site.fake("scontrol")
    run = site.run("slurm.sh", "--job", "/shared/venv", *COMMAND, env=JOB)
    assert run.returncode == 75 and site.calls[-1] == "scontrol requeue 7"

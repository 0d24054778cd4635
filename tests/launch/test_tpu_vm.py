"""launch/tpu_vm.py and launch/host.sh, with a gcloud that plays Cloud TPU; its hosts are folders."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.tools import has

pytestmark = pytest.mark.skipif(not has("bash", "git", "setsid", "tail"), reason="not a source tree on Linux")

COMMAND = ["mgie", "train", "--config", "configs/mgie_7b.py", "--workdir", "gs://bucket/o ut"]
ARGUMENTS = ["--name", "run", "--zone", "us-west4-a", "--topology", "v5e:4x4", "--poll", "0.05"]
PLACE = "--zone=us-west4-a"

# `state` is the queued resource's, `node` its TPU VMs'; a request is granted at the second look. Each call of ssh takes
# its course from the next line of `plan`: the exit code of the command on host 0 and on host 1, or what happens to all.
GCLOUD = r"""
cd "$FAKE"
say() { cat "$1" 2>/dev/null || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }; }
case "$3 $4" in
  "queued-resources create") echo WAITING_FOR_RESOURCES >state; rm -rf host0 host1; mkdir host0 host1 ;;
  "queued-resources delete") rm -f state node ;;
  "queued-resources describe")
    [ ! -e refuse ] || { cat refuse >&2; exit 1; }
    say state
    case $(cat state) in
      WAITING_FOR_RESOURCES) echo PROVISIONING >state ;;
      PROVISIONING) echo ACTIVE >state; echo CREATING >node ;;
    esac ;;
  "tpu-vm describe")
    say node
    [ "$(cat node)" != CREATING ] || echo READY >node ;;
  "queued-resources scp") for host in 0 1; do cp "$5" "host$host/${6#*:}"; done ;;
  "queued-resources ssh")
    read -r first second <plan; sed -i 1d plan
    [ "$first" != preempted ] || { echo "$second" >node; exit 255; }
    [ "$first" != suspended ] || { echo SUSPENDED >state; rm -f node; exit 255; }
    [ "$first" != lost ] || exit 255
    for word in "$@"; do case $word in --command=*) command=${word#--command=} ;; esac; done
    (cd host0 && HOME=$PWD CODE=$first bash -c "$command") & a=$!
    (cd host1 && HOME=$PWD CODE=$second bash -c "$command") & b=$!
    code=0; wait $a || code=$?; wait $b || code=$?
    exit $code ;;
esac
"""

# The host's Python, as far as an installation needs it: what comes of it is a `mgie` that ends as CODE says.
PYTHON = r"""
case "$*" in
  *"uv venv"*) mkdir -p .venv/bin ;;
  *"uv pip install"*) cat >.venv/bin/mgie <<'MGIE'
#!/usr/bin/env bash
{ printf 'mgie'; printf ' %q' "$@"; echo; } >>"$HOME/ran"
echo "in $PWD"
for _ in {1..1200}; do
  [ -z "${UNTIL-}" ] || [ -e "$UNTIL" ] || sleep 0.05
done
exit "$CODE"
MGIE
    chmod +x .venv/bin/mgie ;;
esac
"""


@pytest.fixture
def site(site):
    (site.checkout / ".gitignore").write_text("ignored\n")
    (site.checkout / "ignored").touch()
    site.git()
    (site.checkout / "new.py").touch()
    site.fake("gcloud", GCLOUD)
    site.fake("python3", PYTHON)
    return site


def launch(site, plan, *more, command=COMMAND):
    (site.folder / "plan").write_text(plan)
    return site.run("tpu_vm.py", *ARGUMENTS, *more, "--", *command)


def did(site):
    """The calls of gcloud that change something, by their verbs."""
    verbs = [call.split()[4] for call in site.calls if call.startswith("gcloud")]
    return [verb for verb in verbs if verb != "describe"]


def ran(site, host):
    path = site.folder / host / "ran"
    return path.read_text().splitlines() if path.exists() else []


def test_from_nothing_to_a_good_end(site):
    run = launch(site, "0 0\n", "--spot", "--create-flag=--network=mine")
    assert run.returncode == 0, run.stderr
    assert did(site) == ["create", "scp", "ssh"]
    (create,) = (shlex.split(call) for call in site.calls if " create " in call)
    assert create[1:] == [
        "compute", "tpus", "queued-resources", "create", "run", "--node-id=run", "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--network=mine", PLACE,
    ]  # fmt: skip
    for host in ("host0", "host1"):
        assert [shlex.split(line) for line in ran(site, host)] == [[*COMMAND, "--config.distributed=True"]]
        (unpacked,) = (site.folder / host).glob("mgie-????????????")
        assert (unpacked / "new.py").exists() and not (unpacked / "ignored").exists()
        assert f"in {unpacked}\n" in run.stdout  # so that configs/ is found
    assert run.stdout.count("mgie-host: exit code 0") == 2
    assert "to delete them: gcloud compute tpus queued-resources delete run --force --quiet" in run.stderr
    assert not list(site.folder.glob("*.tar.gz"))


@pytest.mark.parametrize("happens", ["preempted PREEMPTED", "preempted TERMINATED", "suspended"])
def test_tpus_taken_away_are_created_again(site, happens):
    run = launch(site, f"{happens}\n0 0\n", "--delete")
    assert run.returncode == 0, run.stderr
    assert did(site) == ["create", "scp", "ssh", "delete", "create", "scp", "ssh", "delete"]
    assert len(ran(site, "host1")) == 1


def test_saved_and_told_to_leave_it_goes_on(site):
    run = launch(site, "75 75\n0 0\n")
    assert run.returncode == 0 and did(site) == ["create", "scp", "ssh", "ssh"]
    assert len(ran(site, "host0")) == 2
    # The installation is there already.
    assert sum("uv pip install" in call for call in site.calls) == 2


@pytest.mark.parametrize(("codes", "code"), [("2 134", 2), ("134 2", 2), ("3 3", 3), ("137 130", 130)])
def test_what_would_come_again_is_an_end(site, codes, code):
    # The others die of the one that fails; gcloud tells one exit code, not which came first.
    run = launch(site, f"{codes}\n")
    assert run.returncode == code and did(site) == ["create", "scp", "ssh"]


def test_other_failures_are_tried_again_but_not_for_ever(site):
    run = launch(site, "lost\n" + "134 1\n" * 4, "--delete")
    assert run.returncode == 1 and did(site).count("ssh") == 5 and did(site)[-1] == "delete"
    assert "failed 5 times in a row, the last time with exit code 134" in run.stderr


def test_a_preemption_is_no_failure(site):
    run = launch(site, "134 1\n" * 4 + "preempted PREEMPTED\n134 1\n0 0\n")
    assert run.returncode == 0 and did(site).count("create") == 2


def test_tpus_that_are_there_are_taken(site):
    for file, state in (("state", "ACTIVE"), ("node", "READY")):
        (site.folder / file).write_text(f"{state}\n")
    for host in ("host0", "host1"):
        (site.folder / host).mkdir()
    assert launch(site, "0 0\n").returncode == 0
    assert did(site) == ["scp", "ssh"]


def test_a_request_that_failed_is_an_error(site):
    (site.folder / "state").write_text("FAILED\n")
    run = launch(site, "0 0\n")
    assert run.returncode == 1 and did(site) == [] and "has failed; why: gcloud compute tpus" in run.stderr


def test_what_gcloud_refuses_is_an_error(site):
    (site.folder / "refuse").write_text("ERROR: PERMISSION_DENIED: billing\n")
    run = launch(site, "0 0\n")
    assert run.returncode == 1 and "PERMISSION_DENIED: billing" in run.stderr and did(site) == []


def test_several_slices_and_a_dry_run(site):
    arguments = ["--name", "run", "--zone", "us-east5-a", "--project", "mine", "--topology", "v5p:2x2x4"]
    run = site.run("tpu_vm.py", *arguments, "--slices", "2", "--delete", "--dry-run", "--", *COMMAND)
    assert run.returncode == 0 and site.calls == []
    lines = [shlex.split(line) for line in run.stdout.splitlines() if not line.startswith("#")]
    assert all(line[:3] == ["gcloud", "compute", "tpus"] for line in lines)
    assert all(line[-2:] == ["--zone=us-east5-a", "--project=mine"] for line in lines)
    done = [line[3:6] for line in lines]
    name = re.search(r"mgie-[0-9a-f]{12}", run.stdout).group()
    assert done == [
        ["queued-resources", "create", "run"], ["queued-resources", "describe", "run"],
        ["tpu-vm", "describe", "run-0"], ["tpu-vm", "describe", "run-1"],
        ["queued-resources", "scp", lines[4][5]], ["queued-resources", "ssh", "run"],
        ["queued-resources", "delete", "run"],
    ]  # fmt: skip
    assert lines[0][6:-2] == ["--node-count=2", "--node-prefix=run", "--type=v5p", "--topology=2x2x4",
                              "--runtime-version=v2-alpha-tpuv5"]  # fmt: skip
    assert Path(lines[4][5]).parent == site.folder and lines[4][6] == f"run:{name}.tar.gz"
    assert {"--worker=all", "--node=all"} <= set(lines[4]) & set(lines[5]) and "--batch-size=all" in lines[5]
    remote = next(word for word in lines[5] if word.startswith("--command="))
    command = [*COMMAND, "--config.distributed=True"]
    assert remote.endswith(shlex.join(["bash", f"{name}/launch/host.sh", "tpu,gcs", "--", *command]))
    assert not list(site.folder.glob("*.tar.gz"))


def test_only_gke_has_some_tpus(site):
    arguments = ["--name", "run", "--zone", "us-central1-c", "--topology", "v7x:2x2x2"]
    run = site.run("tpu_vm.py", *arguments, "--", *COMMAND)
    assert run.returncode == 2 and "launch/gke.py" in run.stderr


def test_stopped_and_started_again_it_follows(site):
    said = site.folder / "said"  # a file: what outlives a Ctrl-C here would keep a pipe open

    def start():
        command = [sys.executable, site.checkout / "launch" / "tpu_vm.py", *ARGUMENTS, "--", *COMMAND]
        with open(said, "w") as stderr:
            return subprocess.Popen(
                command, env=site.env | {"UNTIL": str(site.folder / "go")}, cwd=site.folder, stdout=subprocess.PIPE,
                stderr=stderr, text=True, start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
            )  # fmt: skip

    (site.folder / "plan").write_text("0 0\n0 0\n")
    first = start()
    wait_for(site.folder / "host0" / "ran")
    wait_for(site.folder / "host1" / "ran")
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does
    assert first.wait(timeout=30) == 130
    err = said.read_text()
    assert "on the hosts the command goes on" in err and "Traceback" not in err
    second = start()
    wait_to_follow(second, hosts=2)
    (site.folder / "go").touch()
    out, _ = second.communicate(timeout=30)
    assert second.returncode == 0 and out.count("mgie-host: exit code 0") == 2
    assert len(ran(site, "host0")) == len(ran(site, "host1")) == 1


def on_host(site, *command, **env):
    return subprocess.Popen(
        ["bash", site.checkout / "launch" / "host.sh", "tpu", "--", *command], env=site.env | env, cwd=site.folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(path):
    until = time.monotonic() + 30
    while not path.exists() or not path.read_text():
        assert time.monotonic() < until
        time.sleep(0.02)


def wait_to_follow(process, hosts=1):
    """Until it prints what the hosts' commands have printed."""
    for line in process.stdout:
        hosts -= line.startswith("in ")
        if not hosts:
            return
    raise AssertionError("it has ended")


def test_a_broken_connection_does_not_end_the_command(site):
    first = on_host(site, "mgie", "train", CODE="0", UNTIL=str(site.folder / "go"))
    wait_for(site.folder / "ran")
    os.killpg(first.pid, signal.SIGHUP)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=30)
    second = on_host(site, "mgie", "train", CODE="3")
    wait_to_follow(second)
    (site.folder / "go").touch()
    out, err = second.communicate(timeout=30)
    assert second.returncode == 0 and out.endswith("mgie-host: exit code 0\n"), err
    assert (site.folder / "ran").read_text() == "mgie train\n"  # once


def test_the_group_of_the_command_is_told_to_leave(site):
    told = "trap 'echo saved; exit 75' TERM; touch $HOME/ready; echo . >$HOME/ready; while :; do sleep 0.05; done"
    run = on_host(site, "bash", "-c", told)
    wait_for(site.folder / "ready")
    pid = int((site.folder / "mgie-run" / "pid").read_text())
    os.killpg(pid, signal.SIGTERM)  # as docs/pod.md stops a run, and as a machine that shuts down does
    out, _ = run.communicate(timeout=30)
    assert run.returncode == 75 and "saved\n" in out


def test_a_process_id_of_another_is_not_taken_for_the_command(site):
    (site.folder / "mgie-run").mkdir()
    (site.folder / "mgie-run" / "pid").write_text(f"{os.getpid()}\n")
    run = on_host(site, "mgie", "train", CODE="0")
    out, _ = run.communicate(timeout=30)
    assert run.returncode == 0 and (site.folder / "ran").exists()


def test_a_killed_command(site):
    run = on_host(site, "bash", "-c", "kill -9 $PPID $$")
    out, _ = run.communicate(timeout=30)
    assert run.returncode == 137 and "exit code 137" in out

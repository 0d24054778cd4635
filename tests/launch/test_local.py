"""launch/local.py: the processes know their places, speak with their numbers, and end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mgie_jax

ROOT = Path(mgie_jax.__file__).parents[1]
LOCAL = ROOT / "launch" / "local.py"

pytestmark = pytest.mark.skipif(not LOCAL.is_file(), reason="not a source tree")


def start(code, *, processes=2, **more):
    """Starts `code` as several processes; `me` is the number of each."""
    code = f"import os, sys, time, signal\nme = int(os.environ['JAX_PROCESS_ID'])\n{code}"
    command = [sys.executable, LOCAL, "--processes", str(processes), "--", sys.executable, "-u", "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **{"text": True, **more})


def test_places_and_numbered_lines():
    names = ("ADDRESS", "BIND_ADDRESS")
    code = "print(os.environ['JAX_NUM_PROCESSES'], os.environ['JAX_PLATFORMS'])\n"
    code += f"print(*(os.environ['JAX_COORDINATOR_' + name] for name in {names}), sep=chr(10))\n"
    code += "sys.stderr.write('half\\rwhole\\nrest')"
    run = start(code, processes=3, text=False)
    out, err = (printed.decode() for printed in run.communicate(timeout=60))
    assert run.returncode == 0
    by_process = [[line[4:] for line in out.split("\n") if line.startswith(f"[{i}] ")] for i in range(3)]
    assert by_process[0] == by_process[1] == by_process[2] and by_process[0][0] == "3 cpu"
    assert by_process[0][1].startswith("127.0.0.1:") and by_process[0][1] == by_process[0][2]
    for i in range(3):
        assert f"[{i}] half\r[{i}] whole\n" in err and f"[{i}] rest\n" in err


def test_a_killed_process_stops_the_others():
    run = start("print(os.getpid())\ntime.sleep(600)", processes=3)
    pids = dict(run.stdout.readline().split() for _ in range(3))
    os.kill(int(pids["[1]"]), signal.SIGKILL)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGKILL
    assert "process 1 was killed by SIGKILL\nlocal: stopping the others" in err and "all processes have stopped" in err
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_one_that_fails_gives_its_exit_code_and_the_others_time():
    # The second ends of itself, a moment later; a third would have to be stopped.
    run = start("if me: time.sleep(1); print('saved')\nsys.exit(75)")
    out, err = run.communicate(timeout=60)
    assert run.returncode == 75 and "[1] saved" in out and "process 0 ended with exit code 75" in err
    assert "stopping" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(number):
    code = f"signal.signal({int(number)}, lambda *_: (print('told'), sys.exit(75)))\n"
    run = start(code + "print('ready')\nwhile True: time.sleep(0.1)")
    assert sorted(run.stdout.readline().strip() for _ in range(2)) == ["[0] ready", "[1] ready"]
    run.send_signal(number)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 75 and sorted(out.split("\n")[:2]) == ["[0] told", "[1] told"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_nothing_outlives_the_launcher():
    run = start("print(os.getpid())\ntime.sleep(600)")
    pids = [int(run.stdout.readline().split()[1]) for _ in range(2)]
    run.kill()
    run.wait()
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--processes", "2"], "a command"), (["--processes", "0", "--", "ls"], "at least 1"),
     (["--", "no-such-command"], "no-such-command: there is no such command")],
)  # fmt: skip
def test_mistakes_are_named(arguments, words):
    run = subprocess.run([sys.executable, LOCAL, *arguments], capture_output=True, text=True)
    assert run.returncode == 2 and words in run.stderr

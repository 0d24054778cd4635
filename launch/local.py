"""Run one command as several processes of one JAX program on this machine, on CPUs.

    python launch/local.py --processes 2 -- mgie train --config configs/test.py --workdir out ...

Each process is told its place among the others (`mgie_jax/distributed.py` reads it); its number goes before every line
it prints. SIGINT and SIGTERM go to all of them. When one fails, the others, which can do nothing without it, are
stopped, and its exit code is this command's (128 + N where signal N killed it).
"""

import argparse
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

FOLLOW_S = 30.0  # to end by itself after another failed: of the same mistake, or after the same checkpoint
END_S = 10.0  # to end after SIGTERM
PR_SET_PDEATHSIG = 1


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", metavar="N", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="after --: what each of them runs")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if args.processes < 1 or not command:
        parser.error("give --processes at least 1, and after -- a command")
    # A command of the environment whose Python runs this, whether or not it is activated.
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
    program = shutil.which(command[0], path=path)
    if program is None:
        parser.error(f"{command[0]}: there is no such command")
    return run([program, *command[1:]], args.processes)


def run(command: list[str], count: int) -> int:
    """Runs `command` as `count` processes until all have ended; returns the exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Collectives block threads of XLA's one pool until all processes have come: it must not run out of them.
    flags = f"--xla_cpu_enable_concurrency_optimized_scheduler=false {os.environ.get('XLA_FLAGS', '')}"
    place = {
        "JAX_PLATFORMS": "cpu",
        "NPROC": os.environ.get("NPROC", "32"),
        "XLA_FLAGS": flags.strip(),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
    }
    processes: list[subprocess.Popen] = []

    def forward(number: int, _frame: object) -> None:
        for process in processes:
            process.send_signal(number)  # of a process that has ended: nothing happens

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    for index in range(count):
        # Process groups of their own: a Ctrl-C reaches them through `forward` alone, and not twice.
        processes.append(subprocess.Popen(
            command, env={**os.environ, **place, "JAX_PROCESS_ID": str(index)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0, preexec_fn=_end_with_parent,
        ))  # fmt: skip
    lock = threading.Lock()
    readers = [
        threading.Thread(target=_relay, args=(pipe, out.buffer, f"[{index}] ".encode(), lock))
        for index, process in enumerate(processes)
        for pipe, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    ]
    for reader in readers:
        reader.start()
    code = _watch(processes)
    for reader in readers:
        reader.join()
    return code


def _watch(processes: list[subprocess.Popen]) -> int:
    """Waits for all to end, and sees to it that they do once one has failed."""
    failed = None
    while failed is None and any(process.poll() is None for process in processes):
        time.sleep(0.05)
        failed = next((i for i, process in enumerate(processes) if process.poll()), None)
    if failed is None:
        return 0
    code = processes[failed].returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    _say(f"process {failed} {how}")
    # One that was killed had no say: the others cannot be about to end for the same reason.
    if not (code > 0 and _ended(processes, FOLLOW_S)):
        _say("stopping the others")
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for process in processes:
                process.send_signal(sent)
            if _ended(processes, END_S):
                break
    _say("all processes have stopped; the same command goes on from the last checkpoint")
    return 128 - code if code < 0 else code


def _ended(processes: list[subprocess.Popen], seconds: float) -> bool:
    """Waits up to `seconds` for all to end; whether they have."""
    until = time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _relay(pipe, out, prefix: bytes, lock: threading.Lock) -> None:
    """Copies lines, each with the prefix; a progress bar's end in a carriage return and go on doing so."""
    rest = b""
    while chunk := pipe.read1(65536):
        *lines, rest = (rest + chunk).replace(b"\r", b"\r\0").replace(b"\n", b"\n\0").split(b"\0")
        with lock:
            for line in lines:
                out.write(prefix + line)
            out.flush()
    if rest:
        with lock:
            out.write(prefix + rest + b"\n")
            out.flush()


def _end_with_parent() -> None:
    """On Linux, has the kernel stop a process whose launcher was itself killed; it would train on unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _say(text: str) -> None:
    print(f"local: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

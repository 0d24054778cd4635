"""A peer in a process of its own, which does the same work and is asked for it a lap at a time. No PyTorch here."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

INSTALL = "pip install 'mgie_jax[bench]'"
NEEDS = ("torch", "diffusers")
KINDS = {"torch": ("torch eager", "torch compiled"), "torch-eager": ("torch eager",)}
"""What --peer may be, and the workers that it means; the first of them is slower and takes less time to start."""
REQUEST, INPUTS, ANSWER = "request.json", "inputs.npz", "\x1emgie-bench "


class PeerFailed(RuntimeError):
    """A peer's process has told of an error or is gone."""


def require(kind: str) -> None:
    """Raises ValueError, naming what to install, where a peer's packages are missing; imports nothing of them."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--peer {kind} needs {' and '.join(missing)}; {INSTALL}")


def write_request(folder: Path, request: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
    """Puts down what workers of this folder are to do."""
    (folder / REQUEST).write_text(json.dumps(request))
    np.savez(folder / INPUTS, **arrays)


class Worker:
    """A process that computes, and times itself.

    Args:
        folder: with a request.
        name: one of `KINDS`.
        command: what is run, followed by folder and name.
    """

    def __init__(
        self, folder: Path, name: str,
        command: Sequence[str] = (sys.executable, "-m", "mgie_jax.bench.torch_peer"),
    ):  # fmt: skip
        self.name, self._folder, self._log = name, folder, folder / f"{name}.log"
        # The peer uses JAX for shapes alone; it shall not take the accelerator's memory.
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1"}
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*command, str(folder), name], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env=environment, process_group=0,
            )  # fmt: skip
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def outputs(self, task: str) -> dict[str, np.ndarray]:
        """What a task computes; the first time compiles."""
        path = self._folder / f"{self.name}-{task}.npz"
        self._ask(run=task, to=str(path))
        with np.load(path) as file:
            found = dict(file)
        path.unlink()
        return found

    def lap(self, task: str, runs: int, minus: bool = False) -> float:
        """Seconds that so many runs of a task take; `minus`: of that which is taken off its time."""
        return self._ask(lap=task, runs=runs, minus=minus)["seconds"]

    def memory(self, task: str) -> dict[str, int]:
        """Bytes that it has had at most: "peak" since it began, "running" while it then does the task once more."""
        return self._ask(memory=task)

    def close(self) -> None:
        """Ends it, and the processes it has started."""
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _ask(self, **order: object) -> dict:
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it is gone, and its last words say why
        return self._answer()

    def _answer(self) -> dict:
        for line in self._process.stdout:
            before, found, answer = line.partition(ANSWER)
            if found:
                answer = json.loads(answer)
                if "error" in answer:
                    raise PeerFailed(f"{self.name}: {answer['error']}")
                return answer
        lines = self._log.read_text(errors="replace").strip().splitlines()
        raise PeerFailed(f"{self.name} ended with code {self._process.wait()}: {lines[-1] if lines else 'no word'}")

"""The worker of a PyTorch peer: the same stages, edit or training step, done each time it is asked over its stdin.

    python -m mgie_jax.bench.torch_peer FOLDER NAME

FOLDER has what `peer` wrote there. Each line of stdin is a command in JSON, and each is answered by one line.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from mgie_jax.bench.inputs import as_source
from mgie_jax.bench.memory import resident
from mgie_jax.bench.peer import ANSWER, INPUTS, REQUEST
from mgie_jax.bench.torch_edit import Peer, networks, torch_device
from mgie_jax.bench.torch_training import training_step

COMPILED = "torch compiled"


def tasks(folder: Path, compiled: bool) -> dict[str, tuple[Callable[[], dict], Callable[[], object] | None]]:
    """What is asked for, by name."""
    request = json.loads((folder / REQUEST).read_text())
    with np.load(folder / INPUTS) as file:
        arrays = dict(file)
    source = as_source(request["source"])
    if request["what"] == "train":
        device = torch_device(request["platform"])
        net = networks(source, torch.float32)[0].to(device)
        return {"train": (training_step(net, arrays, request, device, compiled), None)}
    peer = Peer(source, arrays, request, compiled)
    if request["what"] == "edit":
        photos = [Image.fromarray(photo) for photo in arrays["photos"]]
        return {"edit": (lambda: peer.edit(photos), None)}
    made = peer.stages()
    return {name: made[name] for name in request["names"]}


def serve(folder: Path, name: str) -> None:
    """Answers commands until stdin ends: {"run": TASK, "to": FILE}, {"lap": TASK, "runs": N, "minus": bool}, {"memory":
    TASK}."""
    transformers.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()
    made = tasks(folder, name == COMPILED)

    def finished() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    tell({"ready": True, "versions": {"torch": torch.__version__}})
    for line in sys.stdin:
        order = json.loads(line)
        with torch.set_grad_enabled("train" in order.values()):
            if "memory" in order:
                tell(memory(made[order["memory"]][0]))
            elif "run" in order:
                np.savez(order["to"], **{key: host(x) for key, x in made[order["run"]][0]().items()})
                tell({})
            else:
                run = made[order["lap"]][order.get("minus", False)]
                begun = finished()
                for _ in range(order["runs"]):
                    run()
                tell({"seconds": finished() - begun})


def memory(run: Callable[[], object]) -> dict[str, int]:
    """Peak bytes, of the GPU's memory where there is one: "peak" so far, and "running" during one more `run`."""
    if not torch.cuda.is_available():
        return resident(run)
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return {"peak": max(peak, torch.cuda.max_memory_allocated()), "running": torch.cuda.max_memory_allocated()}


def tell(answer: dict) -> None:
    """Answers, on a line of its own that nothing else begins like."""
    print(ANSWER + json.dumps(answer), flush=True)


def host(x: torch.Tensor | np.ndarray | float) -> np.ndarray:
    """As `stages` has it: float32, pictures and latents NHWC."""
    if not isinstance(x, torch.Tensor):
        return np.asarray(x)
    x = x.float() if x.is_floating_point() else x
    x = x.detach().cpu()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 and x.dtype != torch.uint8 else x).contiguous().numpy()


if __name__ == "__main__":
    try:
        serve(Path(sys.argv[1]), sys.argv[2])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        traceback.print_exc()
        tell({"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]})
        sys.exit(1)

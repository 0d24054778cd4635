"""One joint training step in PyTorch: clipping by the global norm, and AdamW (fused) at the config's rates."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch

from mgie_jax.bench.torch_networks import TorchMGIE

BATCH = ("ids", "mask", "labels", "clip_pixels", "source", "target")
DRAWS = ("posterior", "noise", "timesteps", "uniform")


def training_step(
    net: TorchMGIE, arrays: dict[str, np.ndarray], request: dict, device: torch.device, compiled: bool
) -> Callable[[], dict]:  # fmt: skip
    """Makes an update of `net` each time it is called and returns its loss.

    Args:
        arrays: a batch and, as "noise/0" and so on, the draws of the first updates; the last are used from then on.
        request: "trained" (names of parameters by part), "rates" (of each part, for these updates), "b2",
            "weight_decay", "clip_norm", "compute_dtype", "draws" (of how many updates).
    """
    net.eval().requires_grad_(False)  # no dropout anywhere
    layout = torch.channels_last if compiled else torch.contiguous_format
    for module in (net.unet, net.vae):
        module.to(memory_format=layout)
    named, groups = net.named_tensors(), []
    for part, keys in request["trained"].items():
        # What the module never runs (the tower's last layer) it does not have.
        groups.append({"params": [named[key].requires_grad_() for key in keys if key in named], "name": part})
    optimizer = torch.optim.AdamW(
        groups, lr=0.0, betas=(0.9, request["b2"]), eps=1e-8, weight_decay=request["weight_decay"], fused=True
    )
    everything = [value for group in groups for value in group["params"]]
    run = torch.compile(net) if compiled else net

    def tensor(name: str) -> torch.Tensor:
        x = torch.tensor(np.ascontiguousarray(arrays[name])).to(device)
        return x.permute(0, 3, 1, 2).contiguous(memory_format=layout) if x.ndim == 4 else x

    batch = {name: tensor(name) for name in BATCH}
    draws = [{name: tensor(f"{name}/{k}") for name in DRAWS} for k in range(request["draws"])]
    half = request["compute_dtype"] == "bfloat16"
    done = 0

    def step() -> dict:
        nonlocal done
        number, done = min(done, len(draws) - 1), done + 1
        for group in optimizer.param_groups:
            group["lr"] = request["rates"][group["name"]][number]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            loss = run(**batch, **draws[number])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(everything, request["clip_norm"])
        optimizer.step()
        return {"loss": loss.detach()}

    return step

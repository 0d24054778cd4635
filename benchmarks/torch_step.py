"""One joint training step beside PyTorch's, of the same sizes, weights, batch and draws, in float32.

    python benchmarks/torch_step.py [--config configs/default.py:64] [--config configs/test.py] [--rounds 5]
        [--eager-only] [--json]

PyTorch's step is what one would write with transformers (CLIPVisionModel, LlamaForCausalLM), torch.nn.Transformer and
diffusers (AutoencoderKL, UNet2DConditionModel), with gradient clipping and AdamW (fused), eager and under
torch.compile. Each runs in a process of its own, and they take turns, one step at a time. Nothing is timed before the
losses of the first steps, which see each other's updates, are equal. Averaged weights are off in all.

Prints for each the median seconds of a step (and the quartiles), the peak memory of the process while it steps and
since it began (compilation included), and both against PyTorch's.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

WORKERS = ("jax", "torch eager", "torch compiled")
CHECKED = 3  # steps whose losses are compared
TOLERANCES = (1e-4, 1e-3, 1e-3)  # relative; AdamW makes a whole step of a gradient that is only rounding
PARTS = {"mllm": "", "edit_head": "edit_head.", "unet": "unet.", "vae": "vae."}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", help="a file with get_config(); may be given several times")
    parser.add_argument("--batch-size", type=int, help="in place of the config's")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each")
    parser.add_argument("--eager-only", action="store_true", help="without torch.compile, which compiles for minutes")
    parser.add_argument("--json", action="store_true", help="one line for machines")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(*args.worker)
    for config in args.config or ["configs/default.py:64"]:
        report = compare(config, args.batch_size, args.rounds, WORKERS[:2] if args.eager_only else WORKERS)
        print(json.dumps(report) if args.json else table(report), flush=True)


def compare(config: str, batch_size: int | None, rounds: int, names: tuple[str, ...]) -> dict:
    """Runs the named workers on one config. Raises SystemExit where their losses differ."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = prepare(config, batch_size, Path(folder))
        workers = {name: Worker(name, folder) for name in names}
        try:
            # One after the other: the first step compiles, and needs memory and time of its own.
            losses = {name: [worker.ask("step")["loss"] for _ in range(CHECKED)] for name, worker in workers.items()}
            for found in losses.values():
                errors = np.abs(np.subtract(found, losses["jax"]) / losses["jax"])
                if not (errors < TOLERANCES).all():
                    raise SystemExit(f"{config}: the losses differ, nothing was timed: {json.dumps(losses)}")
            for worker in workers.values():
                worker.ask("reset")
            seconds = {name: [] for name in workers}
            for _ in range(rounds):
                for name, worker in workers.items():
                    seconds[name].append(worker.ask("step")["seconds"])
            memory = {name: worker.ask("memory") for name, worker in workers.items()}
        finally:
            for worker in workers.values():
                worker.process.kill()
    found = {
        name: {
            "seconds": statistics.median(laps), "quartiles": list(np.quantile(laps, (0.25, 0.75))), **memory[name],
            "losses": losses[name],
        }
        for name, laps in seconds.items()
    }  # fmt: skip
    ratios = {
        f"{key} of jax / {name}": found["jax"][key] / found[name][key]
        for name in names[1:] for key in ("seconds", "stepping_gib", "peak_gib")
    }  # fmt: skip
    return {"config": config, **sizes, "rounds": rounds, "cores": os.cpu_count(), "workers": found, "ratios": ratios}


def table(report: dict) -> str:
    sizes = {key: report[key] for key in ("batch_size", "image_size", "max_tokens", "trainable", "rounds", "cores")}
    lines = [f"{report['config']}: {sizes}"]
    for name, found in report["workers"].items():
        low, high = found["quartiles"]
        lines.append(
            f"  {name:15} {found['seconds']:7.3f} s a step ({low:.3f} to {high:.3f}), {found['stepping_gib']:.2f} GiB "
            f"while stepping, {found['peak_gib']:.2f} GiB at most; first loss {found['losses'][0]:.6f}"
        )
    return "\n".join(lines + [f"  {name:40} {ratio:.2f}" for name, ratio in report["ratios"].items()])


class Worker:
    """A process that makes a step, or tells its memory, each time it is asked."""

    def __init__(self, name: str, folder: str):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, folder], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, what: str) -> dict:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit(f"{self.name} ended with code {self.process.wait()}")


def work(name: str, folder: str) -> None:
    """What a `Worker` runs."""
    step = jax_step(Path(folder)) if name == "jax" else torch_step(Path(folder), compiled=name.endswith("compiled"))
    for line in sys.stdin:
        answer = {}
        if line.strip() == "step":
            begun = time.perf_counter()
            loss = step()
            answer = {"seconds": time.perf_counter() - begun, "loss": loss}
        elif line.strip() == "reset":
            answer["before"] = work.before = peak_gib()
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
        elif line.strip() == "memory":
            answer = {"stepping_gib": peak_gib(), "peak_gib": max(work.before, peak_gib())}
        print("answer", json.dumps(answer), flush=True)


def peak_gib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def prepare(path: str, batch_size: int | None, folder: Path) -> dict:
    """Writes what both sides read: the model's sizes, weights under PyTorch's names, a batch, and draws."""
    import jax

    from mgie_jax.cli.train import read_config
    from mgie_jax.diffusion.schedule import alphas_cumprod
    from mgie_jax.models.mgie import MGIE
    from mgie_jax.models.presets import PRESETS
    from mgie_jax.train.loss import make_draws
    from mgie_jax.train.state import schedules, split_params
    from mgie_jax.train.tasks import trainable
    from mgie_jax.weights.rules import iter_torch

    config = read_config(path, [] if batch_size is None else [f"--config.batch_size={batch_size}"])
    sizes, model = PRESETS[config.model](), MGIE(PRESETS[config.model]())
    rng = np.random.default_rng(0)

    def draw(name, leaf):
        if name[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        if name[-1].key == "bias":
            return np.zeros(leaf.shape, np.float32)
        wide = 1.0 if name[-1].key == "query" else 0.02 if "embedding" in name[-1].key else None
        scale = np.prod(leaf.shape[-4:-1]) ** -0.5 if wide is None else wide
        return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, model.shapes())
    tensors = {PARTS[part] + key: np.asarray(value) for part, tree in params.items() for key, value in iter_torch(tree)}
    np.savez(folder / "weights.npz", **tensors)
    trained = split_params(params, trainable(config))[0]
    rates = schedules(config)
    names = {
        part: [PARTS[part] + key for key, _ in iter_torch(trained[part])] for part in trained
    }  # fmt: skip
    steps = range(CHECKED)
    batch = random_batch(config, sizes, rng)
    draws = [
        make_draws(jax.random.fold_in(jax.random.key(config.seed), k), model, batch, config.noise_draws,
                   config.timestep_power)
        for k in steps
    ]  # fmt: skip
    arrays = {name: np.asarray(value) for name, value in vars(batch.text).items()}
    arrays |= {"source": batch.source, "target": batch.target, "alphas_cumprod": alphas_cumprod(sizes.schedule)}
    for k, drawn in enumerate(draws):
        arrays |= {f"{name}/{k}": np.asarray(value) for name, value in vars(drawn).items()}
    np.savez(folder / "batch.npz", **arrays)
    told = {
        "batch_size": config.batch_size, "image_size": config.image_size, "max_tokens": config.max_tokens,
        "trainable": list(trainable(config)), "noise_draws": config.noise_draws,
    }  # fmt: skip
    settings = {
        **told, "config": path, "img0": img0(sizes), "model": dataclasses.asdict(sizes),
        "trained": names, "b2": config.b2, "weight_decay": config.weight_decay, "clip_norm": config.clip_norm,
        "rates": {part: [float(rates.get(part, rates.get("default"))(k)) for k in steps] for part in trained},
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    return told


def img0(sizes) -> int:
    """[IMG0] in the vocabulary's last eight rows."""
    return sizes.mllm.llm.vocab_size - 8


def random_batch(config, sizes, rng):
    """Photos of noise, texts of random words, of different lengths."""
    from mgie_jax.text.prompt import IGNORE
    from mgie_jax.train.loss import EditPairBatch, TextBatch

    rows, length, vision = config.batch_size, config.max_tokens, sizes.mllm.vision
    patches, images = [sizes.mllm.im_patch_id] * vision.num_patches, list(range(img0(sizes), img0(sizes) + 8))
    ids, labels = np.zeros((rows, length), np.int32), np.full((rows, length), IGNORE, np.int32)
    mask = np.zeros((rows, length), bool)
    for row in range(rows):
        words = rng.integers(3, 256, int(rng.integers(20, length - len(patches) - 20)))
        text = [1, *words[:10], *patches, *words[10:], *images, 2]
        ids[row, : len(text)], mask[row, : len(text)] = text, True
        labels[row, 10 + len(patches) : len(text)] = text[10 + len(patches) :]
    side, size = vision.image_size, config.image_size
    seen = rng.standard_normal((rows, side, side, 3)).astype(np.float32)
    source, target = np.tanh(rng.standard_normal((2, rows, size, size, 3))).astype(np.float32)
    return EditPairBatch(text=TextBatch(ids=ids, mask=mask, labels=labels, clip_pixels=seen), source=source,
                         target=target)  # fmt: skip


def jax_step(folder: Path):
    """The project's own step, with all it does but averaging."""
    import jax
    import jax.numpy as jnp

    from mgie_jax.cli.train import read_config
    from mgie_jax.models.mgie import MGIE
    from mgie_jax.models.presets import PRESETS
    from mgie_jax.train.loss import EditPairBatch, TextBatch, make_joint_loss
    from mgie_jax.train.state import init_state, make_optimizer, split_params
    from mgie_jax.train.step import make_step
    from mgie_jax.weights.rules import from_torch

    settings = json.loads((folder / "settings.json").read_text())
    config = read_config(settings["config"], [])
    model = MGIE(PRESETS[config.model]())
    tensors, arrays = np.load(folder / "weights.npz"), np.load(folder / "batch.npz")

    def load(part: str, template: dict) -> dict:
        others = tuple(prefix for prefix in PARTS.values() if prefix and prefix != PARTS[part])
        mine = [key for key in tensors if key.startswith(PARTS[part]) and not key.startswith(others)]
        tree = {key.removeprefix(PARTS[part]): tensors[key] for key in mine}
        return jax.tree.map(jnp.asarray, from_torch(template, tree, part))

    params = {part: load(part, template) for part, template in model.shapes().items()}
    trained, frozen = split_params(params, settings["trainable"])
    text = TextBatch(**{name: arrays[name] for name in ("ids", "mask", "labels", "clip_pixels")})
    batch = EditPairBatch(text=text, source=arrays["source"], target=arrays["target"])
    loss = make_joint_loss(
        model, settings["img0"], noise_draws=config.noise_draws, timestep_power=config.timestep_power
    )
    optimizer = make_optimizer(config)
    update = make_step(loss, optimizer, 0.0)
    state = init_state(trained, optimizer, ema=False)
    del params, trained, tensors

    def step() -> float:
        nonlocal state
        state, metrics = update(state, frozen, batch, jax.random.key(config.seed))
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return step


def torch_step(folder: Path, compiled: bool):
    """The same with PyTorch."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from torch_mgie import TorchMGIE

    settings, arrays = json.loads((folder / "settings.json").read_text()), np.load(folder / "batch.npz")
    module = TorchMGIE(settings["model"], settings["img0"], arrays["alphas_cumprod"])
    module.load(np.load(folder / "weights.npz"))
    module.eval().requires_grad_(False)
    named = module.named_tensors()
    groups = []
    for part, keys in settings["trained"].items():
        # What PyTorch's module never runs (the tower's last layer) it does not have.
        mine = [named[key].requires_grad_() for key in keys if key in named]
        groups.append({"params": mine, "name": part})
    optimizer = torch.optim.AdamW(
        groups, lr=0.0, betas=(0.9, settings["b2"]), eps=1e-8, weight_decay=settings["weight_decay"], fused=True
    )
    everything = [value for group in groups for value in group["params"]]
    run = torch.compile(module) if compiled else module

    def tensor(name: str) -> torch.Tensor:
        x = arrays[name]
        return torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x)

    batch = {name: tensor(name) for name in ("ids", "mask", "labels", "clip_pixels", "source", "target")}
    draws = [{name: tensor(f"{name}/{k}") for name in ("posterior", "noise", "timesteps", "uniform")}
             for k in range(CHECKED)]  # fmt: skip
    done = 0

    def step() -> float:
        nonlocal done
        number, done = min(done, CHECKED - 1), done + 1
        for group in optimizer.param_groups:
            group["lr"] = settings["rates"][group["name"]][number]
        optimizer.zero_grad(set_to_none=True)
        loss = run(**batch, **draws[number])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(everything, settings["clip_norm"])
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()

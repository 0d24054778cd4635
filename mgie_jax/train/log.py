"""What a run tells of itself: progress bar, `metrics.jsonl`, TensorBoard, Weights & Biases, and pictures.

All show the same figures, each averaged over the steps since the line before. Only process 0 writes them. Of a work
folder in a bucket see `train.mirror`.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from mgie_jax.paths import AnyPath, is_remote, to_path
from mgie_jax.photo import save_atomic
from mgie_jax.train.flops import device_peak
from mgie_jax.train.mirror import Mirror
from mgie_jax.weights.atomic import write_text

METRICS, SKIPPED = "metrics.jsonl", "skipped.jsonl"
SHOWN = ("loss", "L_ins", "L_edit", "token_accuracy", "examples_per_second", "mfu")  # beside the progress bar


class Log:
    """The log of one run, to be used as a context manager around its loop.

    A resumed run goes on with the files it finds in `workdir`: lines of steps after `start`, which are about to be
    done again, are dropped, and so is a line torn by a kill, so that no step appears twice.

    A line of `metrics.jsonl` holds `step` and, where they are known: the step's own metrics (losses, token accuracy,
    `grad_norm`, `grad_norm/PART`) as means over the interval; `nonfinite_steps`, how many of its steps were left out
    of those means; `learning_rate/SIDE`; `steps_per_second` and `examples_per_second`; `model_flops_per_second`
    (of the whole run, FLOP/s) and `mfu` (its share of all devices' peak, PaLM's model FLOPs utilisation);
    `data_wait` (share of the time in which the step waited for its batch); `skipped` (how many different examples this
    process has passed over since the run began; `skipped.jsonl` names them, `skipped-K.jsonl` those of process K);
    `host_peak_gib` and `device_peak_gib` (of one device, the fullest). A value that is not finite is null. Rates leave
    out what goes before the first step runs: compilation.

    Args:
        workdir: an existing folder, or one in a bucket.
        start: steps done before.
        steps: steps of the whole run.
        batch_size: examples of a step, over all hosts.
        flops_per_example: training FLOPs (`train.flops`), for `model_flops_per_second` and `mfu`.
        wandb: a project of Weights & Biases, or nothing.

    Raises:
        ValueError: `wandb` names a project and the package is not installed.
    """

    def __init__(
        self, workdir: AnyPath, start: int, steps: int, batch_size: int, *,
        flops_per_example: float | None = None, wandb: str | None = None,
    ):  # fmt: skip
        self._workdir, self._step, self._batch_size = to_path(workdir), start, batch_size
        self._flops, self._peak = flops_per_example, device_peak()
        self._pending: list[dict] = []  # metrics of the interval's steps, on the device
        self._since: float | None = None  # when the interval began; None before the first step
        self._timed, self._waited, self._told = 0, 0.0, 0

        process = jax.process_index()
        skipped = f"skipped-{process}.jsonl" if process else SKIPPED
        self._mirror = Mirror(workdir, [skipped] if process else [skipped, METRICS])
        path = self.folder / skipped
        self._skipped = {row.get("id") for row in keep_until(path, start)}
        self._skipped_lines = open(path, "a")
        self._bar = tqdm(
            total=steps, initial=start, unit="step", dynamic_ncols=True, file=sys.stderr, disable=process != 0
        )
        self._lines = self._board = self._wandb = None
        if process == 0:
            self._wandb = _wandb_run(wandb, self._workdir) if wandb else None
            keep_until(self.folder / METRICS, start)
            self._lines = open(self.folder / METRICS, "a")
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=start + 1)

    @property
    def folder(self) -> Path:
        """A local folder; what is in it at the end is in the work folder, too."""
        return self._mirror.folder

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        for closing in (self._bar, self._board, self._lines, self._skipped_lines):
            if closing is not None:
                closing.close()
        self._mirror.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(kind is not None))

    def update(self, metrics: dict[str, jax.Array], wait_s: float, skipped: Sequence[tuple[str, str]]) -> None:
        """Takes note of one step, without waiting for it.

        Args:
            metrics: the step's, scalars that may still be being computed.
            wait_s: how long the loop waited for its batch, seconds.
            skipped: (id, reason) of the examples passed over while it was made.
        """
        self._step += 1
        if self._since is None:
            # A step that was done when it came back is not part of the time from here on.
            self._since, self._timed = time.perf_counter(), 0 if _ready(metrics) else 1
        else:
            self._timed, self._waited = self._timed + 1, self._waited + wait_s
        self._pending.append(metrics)
        while self._told < len(self._pending) and _ready(self._pending[self._told]):
            self._told += 1
            self._bar.update()
        for name, reason in skipped:
            if name not in self._skipped:
                self._skipped.add(name)
                self._skipped_lines.write(json.dumps({"step": self._step, "id": name, "reason": reason}) + "\n")
                self._skipped_lines.flush()

    def write(self, step: int, learning_rates: dict[str, float]) -> dict[str, float]:
        """Ends an interval: waits for its steps, writes its line everywhere and returns its figures.

        Args:
            step: steps done.
            learning_rates: of the last of them, by side.
        """
        figures = _means(jax.device_get(self._pending))
        figures |= {f"learning_rate/{side}": float(rate) for side, rate in learning_rates.items()}
        figures |= self._rates() | {"skipped": len(self._skipped)} | _memory()
        self._pending, self._told = [], 0
        self._bar.set_postfix({name: f"{figures[name]:.4g}" for name in SHOWN if name in figures}, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._lines is not None:
            finite = {name: value if np.isfinite(value) else None for name, value in figures.items()}
            self._lines.write(json.dumps({"step": step, **finite}) + "\n")
            self._lines.flush()
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(figures, step=step)
        self._mirror.copy()
        return figures

    def save(self) -> None:
        """To be called before a checkpoint is saved: begins to bring what was logged to where the checkpoint goes."""
        if self._board is not None:
            self._board.flush()
        self._mirror.copy(now=True)

    def picture(self, name: str, step: int, image: Image.Image) -> None:
        """Writes `workdir/NAME-STEP.png` (six digits), and shows it in TensorBoard and W&B."""
        if self._board is None:
            return
        save_atomic(image, self._workdir / f"{name}-{step:06d}.png")
        self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(image)}, step=step)

    def _rates(self) -> dict[str, float]:
        now, rates = time.perf_counter(), {}
        if self._timed:
            seconds = max(now - self._since, 1e-9)
            examples = self._timed * self._batch_size / seconds
            rates = {"steps_per_second": self._timed / seconds, "examples_per_second": examples}
            if self._flops is not None:
                rates["model_flops_per_second"] = examples * self._flops
                if self._peak is not None:
                    rates["mfu"] = examples * self._flops / (self._peak * jax.device_count())
            rates["data_wait"] = min(self._waited / seconds, 1.0)
        if self._since is not None:
            self._since, self._timed, self._waited = now, 0, 0.0
        return rates


def read_lines(path: AnyPath) -> list[dict]:
    """The objects of a JSON-lines file. Lines torn by a kill while they were written are left out."""
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def keep_until(path: AnyPath, step: int) -> list[dict]:
    """Drops from a JSON-lines file, if it exists, the lines of steps after `step`; returns those that stay."""
    if not path.exists():
        return []
    rows = [row for row in read_lines(path) if row.get("step", step + 1) <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _ready(metrics: dict) -> bool:
    return all(getattr(value, "is_ready", lambda: True)() for value in metrics.values())


def _means(rows: list[dict]) -> dict[str, float]:
    """Means over the steps whose loss and gradient were finite, where the step tells ("finite"); else over all."""
    finite = [row for row in rows if row.get("finite", True)]
    names = [name for name in (rows[0] if rows else ()) if name != "finite"]
    means = {name: float(np.mean([row[name] for row in finite or rows], dtype=np.float64)) for name in names}
    if left_out := len(rows) - len(finite):
        means["nonfinite_steps"] = left_out
    return means


def _memory() -> dict[str, float]:
    """Peaks since the process began, GiB; of device memory only where the backend counts it (CPUs do not)."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    stats = [device.memory_stats() for device in jax.local_devices()]
    used = [found["peak_bytes_in_use"] for found in stats if found and "peak_bytes_in_use" in found]
    return peaks | ({"device_peak_gib": max(used) / 2**30} if used else {})


def _wandb_run(project: str, workdir: AnyPath):
    """A run of Weights & Biases that later starts in the same folder go on with."""
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"config.wandb names the project {project!r} and the package is not installed: pip install wandb, "
            "or leave config.wandb empty"
        ) from error
    kept, folder = workdir / "wandb-run", tempfile.gettempdir() if is_remote(workdir) else str(workdir)
    run = wandb.init(
        project=project, dir=folder, name=workdir.name, resume="allow",
        id=kept.read_text().strip() if kept.exists() else None,
    )  # fmt: skip
    write_text(kept, f"{run.id}\n")
    return run

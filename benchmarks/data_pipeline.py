"""How fast training batches are made, against how fast a step consumes them.

    python benchmarks/data_pipeline.py [--config FILE] [--init DIR] [--rounds 3] [--examples 256] [--profile 10]

Measures the jitted step of the config on one ready batch, and streams of batches with 0, 1 and 2 worker processes from
two sources: pairs generated from the bundled photos, and a data set on disk like the released IPr2Pr's (two JPEGs of
512 px an example), which it makes first. Step and streams run in turn, in one process, nothing else beside them;
medians over the rounds. Prints examples per second, their ratio to the step's, and where one thread spends its time.
The last source is the data set at the sizes of `mgie_7b`, for which there is no step to run here.
"""

import argparse
import base64
import cProfile
import dataclasses
import io
import json
import pickle
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

import mgie_jax
from mgie_jax.cli.train import read_config
from mgie_jax.data.builders.build import build
from mgie_jax.data.generate import EditPairs
from mgie_jax.data.order import EndlessExamples, GeneratedExamples, RecordedExamples
from mgie_jax.data.photos import collect, load
from mgie_jax.data.pipeline import BatchFn, stream
from mgie_jax.models.presets import mgie_7b
from mgie_jax.sharding import make_mesh
from mgie_jax.text.prompt import PromptTokenizer
from mgie_jax.train.batches import EditPairBatches
from mgie_jax.train.optimizer import make_optimizer
from mgie_jax.train.start import load_start
from mgie_jax.train.state import init_state
from mgie_jax.train.step import make_step
from mgie_jax.train.tasks import STAGES, trainable

PHOTOS = Path(mgie_jax.__file__).parent / "assets" / "photos"
WORKERS = (0, 1, 2)
SIZE, QUALITY = 512, 90  # of the data set's JPEGs


def make_ipr2pr(folder: Path, pairs: EditPairs, count: int) -> Path:
    """A data set built from generated pairs laid out as the released preparation lays IPr2Pr out."""
    source = folder / "ipr2pr"
    source.mkdir()
    rows, expressive, at = [], {}, 0
    with open(source / "ipr2pr.tsv", "wb") as table:
        for number, example in enumerate(map(pairs.example, range(count))):
            id = f"{number:07d}_0_0"
            line = b"\t".join(base64.b64encode(jpeg(pixels)) for pixels in (example.source, example.target)) + b"\n"
            table.write(line)
            rows.append([{"input": id, "answer": f"{id}1", "instruction": example.instruction, "lineidx": at}])
            expressive[id] = {"instruction": example.instruction, "expressive": example.expressive}
            at += len(line)
    (source / "ipr2pr.pkl").write_bytes(pickle.dumps({"task": rows}))
    (source / "ipr2pr_expressive.json").write_text(json.dumps(expressive))
    return build("ipr2pr", source, folder / "datasets").path


def jpeg(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


def step_rate(task, config) -> Callable[[], float]:
    """A function that runs a few updates and returns examples per second."""
    optimizer = make_optimizer(config)
    state = init_state(jax.tree.map(jax.numpy.copy, task.params), optimizer, config.ema_decay > 0)
    step, key = make_step(task.loss, optimizer, config.ema_decay), jax.random.key(0)
    batch = jax.device_put(task.batch(0, slice(None)).arrays)
    for _ in range(2):  # what the first returns is laid out otherwise than what it got: the second compiles anew
        state, _ = jax.block_until_ready(step(state, task.frozen, batch, key))

    def run(steps: int = 3) -> float:
        nonlocal state
        begun = time.perf_counter()
        for _ in range(steps):
            state, _ = jax.block_until_ready(step(state, task.frozen, batch, key))
        return steps * config.batch_size / (time.perf_counter() - begun)

    return run


def stream_rate(batches: EditPairBatches, workers: int, count: int) -> tuple[float, float]:
    """Examples per second once batches flow, and seconds until the first."""
    begun = time.perf_counter()
    with closing(stream(batches, 0, 10**9, slice(None), workers, prefetch=4)) as made:
        next(made)
        started = time.perf_counter()
        for _ in range(8):  # what was made while workers started
            next(made)
        flowing, number = time.perf_counter(), max(4, count // batches.batch_size)
        for _ in range(number):
            next(made)
        return number * batches.batch_size / (time.perf_counter() - flowing), started - begun


def profile(batches: BatchFn, lines: int) -> str:
    """The functions in which one thread spends most of its own time, as shares."""
    profiler = cProfile.Profile()
    profiler.enable()
    for number in range(4):
        batches(number, slice(None))
    profiler.disable()
    stats = pstats.Stats(profiler)
    spent = sorted(((own, calls, name) for name, (_, calls, own, _, _) in stats.stats.items()), reverse=True)
    return "\n".join(
        f"    {own / stats.total_tt:6.1%}  {calls:7d} calls  {Path(file).name}:{function}"
        for own, calls, (file, _, function) in spent[:lines]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(PHOTOS.parents[2] / "configs" / "default.py:64"))
    parser.add_argument("--init", type=Path, default=mgie_jax.default_model_dir(), help="the model that is trained")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=256, help="of the data set, and timed of each stream")
    parser.add_argument("--profile", type=int, default=10, metavar="LINES")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        collect(folder / "photos", [PHOTOS], progress=False)
        config = read_config(args.config, [f"--config.photos={folder / 'photos'}"])
        photos = list(load(config.photos).values())
        pairs = EditPairs(photos, seed=config.seed, size=config.example_size, weights=dict(config.weights))
        stored = make_ipr2pr(folder, dataclasses.replace(pairs, size=SIZE), args.examples)

        mesh = make_mesh((1, 1, 1), jax.devices()[:1])
        start = load_start(args.init, STAGES["joint"].parts, trainable(config), mesh, config.frozen_dtype)
        task = STAGES["joint"].task(config, start, GeneratedExamples(pairs))

        def batches_of(examples: EndlessExamples, model=start.config, length=config.max_tokens, size=config.image_size):
            prompt = dataclasses.replace(model.prompt, model_max_length=length)
            tokenizer = PromptTokenizer(start.tokenizer.tokenizer, model.mllm.vision.num_patches, prompt)
            return EditPairBatches(examples, tokenizer, model, config.batch_size, length, size)

        def records(resolution: int) -> RecordedExamples:
            return RecordedExamples.open(str(stored), seed=0, resolution=resolution)

        large = mgie_7b()  # with room for more tokens than LLaMA's tokenizer makes
        sources = {
            "generated": batches_of(GeneratedExamples(pairs)),
            "records": batches_of(records(start.config.sampling.resolution)),
            "records, mgie_7b's sizes": batches_of(records(large.sampling.resolution), large, 1024, 256),
        }

        step = step_rate(task, config)
        steps, rates, firsts = [], {}, {}
        with tqdm(total=args.rounds * len(sources) * len(WORKERS), unit="stream") as bar:
            for _ in range(args.rounds):
                steps.append(step())
                for name, batches in sources.items():
                    for workers in WORKERS:
                        rate, first = stream_rate(batches, workers, args.examples)
                        rates.setdefault((name, workers), []).append(rate)
                        firsts.setdefault((name, workers), []).append(first)
                        bar.update()
        consumed = statistics.median(steps)
        print(f"step: {consumed:.1f} examples/s (batch {config.batch_size}, {config.image_size} px)")
        for (name, workers), found in rates.items():
            rate = statistics.median(found)
            against = f", {rate / consumed:.1f} times the step" if "mgie_7b" not in name else ""
            first = statistics.median(firsts[name, workers])
            print(f"{name}, {workers} workers: {rate:.0f} examples/s{against}; first batch after {first:.1f} s")
        for name, batches in sources.items():
            print(f"{name}, one thread, share of its time in a function itself:\n{profile(batches, args.profile)}")


if __name__ == "__main__":
    main()

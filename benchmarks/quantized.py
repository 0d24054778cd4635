"""What int8 costs and saves: `--quantize` beside the float model, on held-out instructions and photos.

    python benchmarks/quantized.py [--model DIR] [--photos DIR] [--dtype NAME] [--examples 32] [--pictures 8] [--json]

"Tokens equal" compares answers place by place, so that one other word makes all after it count as others; top-1 is of
the same answer, read by both. Guidance and the UNet's output are compared where both are given the same; "picture"
compares whole edits, and "same states" those that only draw. Edits of all modes take turns; memory is of processes of
their own that load the model and edit one photo.
"""

import argparse
import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

import mgie_jax
from mgie_jax import edit
from mgie_jax.bench.memory import resident
from mgie_jax.cli.eval import heldout_photos
from mgie_jax.data.generate import EditPairs
from mgie_jax.data.ops import GLOBAL_OPS
from mgie_jax.data.repairs import REPAIRS
from mgie_jax.diffusion.schedule import add_noise, make_schedule
from mgie_jax.editor import Editor
from mgie_jax.eval.metrics import psnr, unit
from mgie_jax.models.mgie import NUM_IMG_TOKENS
from mgie_jax.models.quantize import MODES
from mgie_jax.text.prompt import pad_batch

ROWS = 8
TIMES = (100, 500, 900)
STAGES = ("write", "denoise")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="DIR", help="model directory (default: the bundled model)")
    parser.add_argument("--photos", metavar="DIR", type=Path, default=Path(mgie_jax.__file__).parent / "assets/photos",
                        help="as `mgie eval` takes them (default: the bundled examples)")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--examples", metavar="N", type=int, default=32)
    parser.add_argument("--pictures", metavar="N", type=int, default=8, help="of the examples, for PSNR and seconds")
    parser.add_argument("--steps", metavar="N", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", metavar="MODE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        return print(json.dumps(memory(args)))
    editors = {mode: load(args, mode) for mode in (None, *MODES)}
    pairs = examples(args, editors[None])
    answers = {mode: answered(editor, pairs) for mode, editor in editors.items()}
    found = {str(mode): {"weight_bytes": sum(x.nbytes for x in jax.tree.leaves(editor.params))}
             for mode, editor in editors.items()}  # fmt: skip
    read = {}
    for mode, editor in editors.items():
        read[mode] = given(editor, pairs, answers[None], read.get(None, {}).get("conditions"))
    for mode in MODES:
        found[mode] |= compared(answers[None], answers[mode]) | {
            "top1_equal": float(np.mean(read[mode]["top1"] == read[None]["top1"])),
            "guidance_error": error(read[mode]["guidance"], read[None]["guidance"]),
            "unet_error": error(read[mode]["noise"], read[None]["noise"]),
        }
    for mode, drawn in pictures(args, editors, pairs[: args.pictures]).items():
        found[str(mode)] |= drawn
    for mode in editors:
        found[str(mode)] |= memory_in_a_process(mode)
    about = {"examples": len(pairs), "pictures": args.pictures, "dtype": args.dtype, "device": str(jax.devices()[0])}
    print(json.dumps(about | {"modes": found}) if args.json else table(about, found))


def load(args: argparse.Namespace, mode: str | None) -> Editor:
    return mgie_jax.load(args.model, dtype=args.dtype, quantize=mode)


def examples(args: argparse.Namespace, editor: Editor) -> list[tuple[Image.Image, str]]:
    """Photos with instructions of every kind in turn."""
    pairs = EditPairs(heldout_photos(args.photos), split="heldout", seed=0, size=editor.config.sampling.resolution)
    kinds = (*GLOBAL_OPS, *REPAIRS)
    made = [pairs.example_of(kinds[i % len(kinds)], i) for i in range(args.examples)]
    return [(Image.fromarray(example.source), example.instruction) for example in made]


def answered(editor: Editor, pairs: list) -> list[np.ndarray]:
    """The tokens of the answer to each."""
    tokens = editor.tokenizer
    special = edit.Special(tokens.img_ids[0], tokens.eos_id, tokens.pad_id)
    draft = tuple(range(special.img0, special.img0 + NUM_IMG_TOKENS))
    said = jax.jit(partial(
        edit.answer, editor.model, max_new_tokens=editor.config.sampling.max_new_tokens, eos_id=special.eos,
        pad_id=special.pad, draft=draft,
    ))  # fmt: skip
    found = []
    for rows in batches(editor, pairs):
        ids, mask = padded(editor, [row.ids for row in rows])
        _, answer = said(editor.params, ids, mask, np.stack([row.clip_pixels for row in rows]))
        found += [np.asarray(answer.tokens[i, : answer.length[i]]) for i in range(len(rows))]
    return found


def given(
    editor: Editor, pairs: list, answers: list[np.ndarray], conditions: edit.Conditions | None
) -> dict[str, np.ndarray | edit.Conditions]:
    """What the networks make of answers that are given: top-1 of every token of them, guidance, predicted noise.

    The UNet is shown `conditions`, by default those of the first answers, which are returned."""
    model, config = editor.model, editor.config
    special = edit.Special(editor.tokenizer.img_ids[0], editor.tokenizer.eos_id, editor.tokenizer.pad_id)
    schedule = make_schedule(config.schedule)

    @jax.jit
    def read(params, ids, mask, clip_pixels):
        hidden = model.mllm.apply({"params": params["mllm"]}, ids, mask, clip_pixels)
        return model.mllm.apply({"params": params["mllm"]}, hidden, method="logits").argmax(-1)

    @jax.jit
    def guided(params, batch):
        states = edit.read(model, params, batch, special)
        return edit.guide(model, params, states, batch.pixels)

    @jax.jit
    def unet(params, conditions, noise, t):
        latents = conditions.image_latents
        sample = jnp.concatenate([add_noise(schedule, latents * config.vae.scaling_factor, noise, t), latents], -1)
        return model.unet.apply({"params": params["unet"]}, sample, t, conditions.guidance)

    top1, guidance, noises = [], [], []
    start = 0
    for rows in batches(editor, pairs):
        said = answers[start : start + len(rows)]
        ids, mask = padded(editor, [[*row.ids, *map(int, answer)] for row, answer in zip(rows, said, strict=True)])
        clip = np.stack([row.clip_pixels for row in rows])
        best = np.asarray(read(editor.params, ids, mask, clip))
        for i, (row, answer) in enumerate(zip(rows, said, strict=True)):
            top1.append(best[i, len(row.ids) - 1 : len(row.ids) + len(answer) - 1])
        pixels = np.stack([row.pixels for row in rows])
        made = guided(editor.params, edit.EditBatch(ids, mask, clip, pixels))
        guidance.append(np.asarray(made.guidance, np.float32))
        conditions = conditions or made
        start += len(rows)
    for t in TIMES:
        latents = conditions.image_latents
        noise = jax.random.normal(jax.random.key(t), latents.shape, latents.dtype)
        noises.append(np.asarray(unet(editor.params, conditions, noise, jnp.full(len(latents), t)), np.float32))
    together = {"top1": top1, "guidance": guidance, "noise": noises}
    return {name: np.concatenate(parts) for name, parts in together.items()} | {"conditions": conditions}


def batches(editor: Editor, pairs: list) -> list[list]:
    rows = [editor.prepare(photo, instruction) for photo, instruction in pairs]
    return [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]


def padded(editor: Editor, ids: list) -> tuple[np.ndarray, np.ndarray]:
    widths = [width for width in range(64, 4096, 64) if width >= max(map(len, ids))]
    return pad_batch(ids, widths, pad_id=editor.tokenizer.pad_id)


def compared(wanted: list[np.ndarray], got: list[np.ndarray]) -> dict[str, float]:
    equal = [int((a[: len(b)] == b[: len(a)]).sum()) for a, b in zip(wanted, got, strict=True)]
    whole = [np.array_equal(a, b) for a, b in zip(wanted, got, strict=True)]
    return {"tokens_equal": sum(equal) / sum(map(len, wanted)), "answers_equal": float(np.mean(whole))}


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def pictures(args: argparse.Namespace, editors: dict, pairs: list) -> dict[str | None, dict[str, float]]:
    """PSNR to the float model's pictures, and the medians of each stage's seconds beside the float model's."""
    scores = {mode: {"whole": [], "states": []} for mode in editors}
    seconds = {mode: [] for mode in editors}
    for i, (photo, instruction) in enumerate(tqdm([pairs[0], *pairs], file=sys.stderr, unit="photo")):
        first = None
        for mode, editor in editors.items():
            result = editor.edit(photo, instruction, seed=i, steps=args.steps)
            first = first or result
            drawn = editor.edit(photo, instruction, seed=i, steps=args.steps, states=first.states)
            if i == 0:  # it compiled
                continue
            for kind, each in (("whole", result), ("states", drawn)):
                scores[mode][kind].append(psnr(unit(np.asarray(each.image)), unit(np.asarray(first.image))))
            seconds[mode].append(result.seconds)
    usual = {stage: [laps[stage] for laps in seconds[None]] for stage in STAGES}
    return {
        mode: {
            "picture_psnr": statistics.median(scores[mode]["whole"]),
            "same_states_psnr": statistics.median(scores[mode]["states"]),
            "seconds": {stage: statistics.median(laps[stage] for laps in seconds[mode]) for stage in STAGES},
            "seconds_ratio": {
                stage: statistics.median(a[stage] / b for a, b in zip(seconds[mode], usual[stage], strict=True))
                for stage in STAGES
            },
        }
        for mode in editors
    }


def memory(args: argparse.Namespace) -> dict[str, int]:
    """Of this process: at most while loading, and while it edits a second photo."""
    editor = load(args, None if args.memory_of == "None" else args.memory_of)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    run = partial(editor.edit, photo, "make it darker", steps=args.steps)
    run()
    told = jax.devices()[0].memory_stats() or {}
    return {"device_peak_bytes": told.get("peak_bytes_in_use", 0), "resident_bytes": resident(run)["running"]}


def memory_in_a_process(mode: str | None) -> dict[str, int]:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", str(mode)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def table(about: dict, found: dict) -> str:
    rows = [("", *found)]

    def row(name: str, show) -> None:
        rows.append((name, *(show(told) for told in found.values())))

    for name, key in (("answer tokens equal", "tokens_equal"), ("answers equal", "answers_equal"),
                      ("top-1 equal", "top1_equal")):  # fmt: skip
        row(name, lambda told, key=key: f"{told[key]:.1%}" if key in told else "")
    for name, key in (("guidance error", "guidance_error"), ("UNet output error", "unet_error")):
        row(name, lambda told, key=key: f"{told[key]:.4f}" if key in told else "")
    for name, key in (("picture PSNR, dB", "picture_psnr"), ("same states PSNR, dB", "same_states_psnr")):
        row(name, lambda told, key=key: f"{told[key]:.1f}" if told[key] < 100 else "equal")
    for stage in STAGES:
        row(
            f"{stage}, s (ratio)",
            lambda told, stage=stage: f"{told['seconds'][stage]:.2f} ({told['seconds_ratio'][stage]:.2f})",
        )
    for name, key in (("weights, MB", "weight_bytes"), ("resident while editing, MB", "resident_bytes"),
                      ("device memory at most, MB", "device_peak_bytes")):  # fmt: skip
        row(name, lambda told, key=key: f"{told[key] / 1e6:.0f}" if told[key] else "not known")
    shown = "\n".join(f"{name:<28}" + "".join(f"{value:>16}" for value in values) for name, *values in rows)
    return f"{shown}\n" + ", ".join(f"{name} {value}" for name, value in about.items())


if __name__ == "__main__":
    main()

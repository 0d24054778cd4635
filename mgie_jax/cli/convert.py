"""`mgie convert`: checkpoints between PyTorch and here, and what is in a model directory."""

import argparse
import contextlib
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mgie_jax.paths import AnyPath, argument, files, is_remote, is_within, to_path

HELP = "convert checkpoints from and to PyTorch, and check them"
DTYPES = ("keep", "float32", "float16", "bfloat16")
SOURCE = "a path (also gs://BUCKET/NAME), or a repository of the Hugging Face hub (owner/name, or owner/name@revision)"
RELEASED_HEADS = 4  # repeated from weights.official, which would bring JAX in
# What a folder that may be overwritten holds, so that --overwrite never removes one that is something else.
OURS = ("model_index.json", "config.json", "unet/config.json", "mllm.pt")
CONFIGS = ("*.json", "tokenizer.model")

Parts = Mapping[str, Mapping[str, Any]]
Progress = Callable[[int], None]
Plan = tuple[Parts, Callable[[Progress], None]]

FROM_OFFICIAL = """examples:
  mgie convert from-official --llava LLaVA-7B-v1 --mgie mgie_7b --clip openai/clip-vit-large-patch14 \\
      --diffusion timbrooks/instruct-pix2pix mgie_7b_jax
  mgie convert from-official --mgie snapshot/checkpoint-2000 --clip clip --diffusion sd --dtype bfloat16 mine
"""
TO_OFFICIAL = """examples:
  mgie convert to-official mgie_7b_jax mgie_7b
  mgie convert to-official mine mine_pt --dtype float16
"""
FROM_LDM = """examples:
  mgie convert from-ldm instruct-pix2pix-00-22000.ckpt ip2p
  mgie convert from-ldm v1-5-pruned.safetensors sd8 --no-ema --in-channels 8 --dtype float16
"""
APPLY_DELTA = """examples:
  mgie convert apply-delta --base llama-7b --delta liuhaotian/LLaVA-Lightning-7B-delta-v1-1 LLaVA-7B-v1
"""
AVERAGE = """examples:
  mgie convert average out/128-5/model out/128-6/model mean
  mgie edit photo.jpg "make it warmer" --model mean
"""
CHECK = """examples:
  mgie convert check mgie_7b_jax
  mgie convert check mgie_7b_jax --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Move weights between PyTorch's formats and the model directory; equal dtypes, equal bits."
    parser.epilog = "`mgie convert COMMAND --help` shows a command's arguments and examples."
    commands = parser.add_subparsers(dest="conversion", metavar="COMMAND", required=True)

    def command(name: str, what: str, examples: str, plan: Callable | None) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=what, description=what[0].upper() + what[1:] + ".", epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(plan=plan)
        sub.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
        return sub

    sub = command("from-official", "the released files, or a snapshot, to a model directory", FROM_OFFICIAL, _official)
    sub.add_argument("--llava", metavar="DIR", help="LLaVA: config.json, tokenizer, weights (a snapshot has its own)")
    sub.add_argument("--mgie", metavar="DIR", required=True, help="mllm.pt and unet.pt, or the trainer's snapshot")
    sub.add_argument("--clip", metavar="DIR", required=True, help="CLIP: the vision tower, or all of it")
    sub.add_argument("--diffusion", metavar="DIR", required=True, help="Stable Diffusion v1.5 or InstructPix2Pix")
    sub.add_argument(
        "--nhead", metavar="N", type=int, default=RELEASED_HEADS, help="heads of the edit head (default 4)"
    )
    sub.description += f" Each DIR is {SOURCE}."
    _add_output(sub)
    sub = command("to-official", "a model directory to mllm.pt and unet.pt", TO_OFFICIAL, _to_official)
    sub.add_argument("model", metavar="MODEL", help="model directory: " + SOURCE)
    _add_output(sub)
    sub = command("from-ldm", "a single-file checkpoint of Stable Diffusion to unet/ and vae/", FROM_LDM, _ldm)
    sub.add_argument("file", metavar="FILE", help=".ckpt or .safetensors; of the hub as owner/name/file[@revision]")
    sub.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, help="take the averaged UNet (default: where the file has it)"
    )
    sub.add_argument("--in-channels", metavar="N", type=int, help="widen the UNet's input to N channels with zeros")
    _add_output(sub)
    sub = command("apply-delta", "add a published delta to the model it was taken from", APPLY_DELTA, _delta)
    sub.add_argument("--base", metavar="DIR", required=True, help="LLaMA: " + SOURCE)
    sub.add_argument("--delta", metavar="DIR", required=True, help="the delta: " + SOURCE)
    _add_output(sub)
    sub = command("average", "the mean of models of one kind, which is often better than each", AVERAGE, _average)
    sub.add_argument("models", metavar="MODEL", nargs="+", help="two model directories or more, each " + SOURCE)
    _add_output(sub)
    sub = command("check", "what is in a model directory, and whether it would load", CHECK, None)
    sub.add_argument("path", metavar="PATH", help=SOURCE)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", type=argument, help="the folder to make")
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help="of the written tensors (default: keep)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it is there")


def run(args: argparse.Namespace) -> int:
    """Convert, or check. Raises ValueError (also as ModelDirError) for whatever the user can mend."""
    if args.conversion == "check":
        return _check(args)
    output = args.output
    from mgie_jax.weights.atomic import is_there

    there = any(is_there(output, name) for name in OURS)
    if there and not args.overwrite:
        raise ValueError(f"{output} exists already; choose another name, or --overwrite it")
    if there and not any((output / name).exists() for name in OURS):
        raise ValueError(f"{output} is no folder that mgie convert writes; --overwrite will not remove it")
    args.dtype = None if args.dtype == "keep" else args.dtype
    start = time.perf_counter()
    # Whatever libraries print on the way belongs to stderr: stdout is the answer alone.
    with contextlib.redirect_stdout(sys.stderr):
        parts, write = args.plan(args)
        with _bar(sum(_nbytes(tensor, args.dtype) for part in parts.values() for tensor in part.values())) as bar:
            write(bar.update)
    answer = {
        "output": str(output),
        "bytes": sum(entry.size for entry in files(output).values()),
        "dtypes": dict(Counter(_dtype(t, args.dtype).name for part in parts.values() for t in part.values())),
        "tensors": {name: len(part) for name, part in parts.items()},
        "parameters": {name: sum(math.prod(t.shape) for t in part.values()) for name, part in parts.items()},
        "seconds": round(time.perf_counter() - start, 3),
    }
    if args.json:
        print(json.dumps(answer))
        return 0
    print(f"Written: {output} ({answer['bytes'] / 1e6:,.1f} MB in {answer['seconds']:.1f} s)")
    for name, count in answer["parameters"].items():
        print(f"  {name}: {count:,} parameters in {answer['tensors'][name]} tensors")
    print("  dtypes: " + ", ".join(f"{name} ({count} tensors)" for name, count in answer["dtypes"].items()))
    return 0


def _official(args: argparse.Namespace) -> Plan:
    if args.nhead < 1:
        raise ValueError(f"--nhead {args.nhead}: must be at least 1")
    llava = None if args.llava is None else _weights(args, args.llava)
    mgie = _fetch(args, args.mgie, [*CONFIGS, "mllm.pt", "unet.pt", "pytorch_model-*.bin", "*.safetensors"])
    clip = _weights(args, args.clip)
    vae = "vae/diffusion_pytorch_model"
    diffusion = _fetch(args, args.diffusion, ["*/config.json", "scheduler/*", f"{vae}.safetensors"])
    if not any(diffusion.glob("vae/*.safetensors")):
        diffusion = _fetch(args, args.diffusion, ["*/config.json", "scheduler/*", f"{vae}.bin"])
    from mgie_jax.text.train_tokenizer import save_tokenizer
    from mgie_jax.weights.files import write_model_dir
    from mgie_jax.weights.official import from_official

    made = from_official(llava, mgie, clip, diffusion, args.nhead)

    def write(progress: Progress) -> None:
        pairs = {name: part.items() for name, part in made.parts.items()}
        with tempfile.TemporaryDirectory() as folder:
            save_tokenizer(made.tokenizer, folder)
            write_model_dir(args.output, made.config, pairs, folder, args.dtype, args.overwrite, progress=progress)

    return made.parts, write


def _to_official(args: argparse.Namespace) -> Plan:
    model = _fetch(args, args.model)
    from mgie_jax.weights.model_config import load_config
    from mgie_jax.weights.official import to_official, write_official

    files, heads = to_official(model), load_config(model).edit_head.nhead
    if heads != RELEASED_HEADS:  # which no tensor tells
        print(f"Note: the edit head has {heads} heads, the released code {RELEASED_HEADS}; from-official takes --nhead")
    return files, lambda progress: write_official(args.output, files, args.dtype, args.overwrite, progress)


def _ldm(args: argparse.Namespace) -> Plan:
    if args.in_channels is not None and args.in_channels < 1:
        raise ValueError(f"--in-channels {args.in_channels}: must be at least 1")
    path = _fetch_file(args, args.file)
    from mgie_jax.weights import ldm
    from mgie_jax.weights.tensors import open_tensors

    model = ldm.convert(open_tensors(path), str(path), args.ema, args.in_channels)
    parts = {"unet": model.unet, "vae": model.vae}
    return parts, lambda progress: ldm.write(args.output, model, args.dtype, args.overwrite, progress)


def _delta(args: argparse.Namespace) -> Plan:
    base, delta = _weights(args, args.base), _weights(args, args.delta)
    from mgie_jax.weights.delta import apply_delta, write
    from mgie_jax.weights.tensors import open_tensors

    sums = apply_delta(open_tensors(base), open_tensors(delta), f"{base} and {delta}")
    return {"mllm": sums}, lambda progress: write(args.output, sums, delta, args.dtype, args.overwrite, progress)


def _average(args: argparse.Namespace) -> Plan:
    models = [_fetch(args, model) for model in args.models]
    from mgie_jax.weights.average import average
    from mgie_jax.weights.files import write_model_dir
    from mgie_jax.weights.model_config import load_config

    parts, config = average(models), load_config(models[0])

    def write(progress: Progress) -> None:
        pairs = {name: part.items() for name, part in parts.items()}
        tokenizer = models[0] / "tokenizer"
        write_model_dir(args.output, config, pairs, tokenizer, args.dtype, args.overwrite, progress=progress)

    return parts, write


def _check(args: argparse.Namespace) -> int:
    path = _fetch(args, args.path)
    total = sum(entry.size for entry in files(path).values())
    with contextlib.redirect_stdout(sys.stderr):
        from mgie_jax.weights.check import check

        with _bar(2 * total, "Reading") as bar:  # once for the checksums, once for the numbers
            report = check(path, bar.update)
    print(json.dumps(report.to_json()) if args.json else report)
    return 0 if report.good else 2


def _fetch(args: argparse.Namespace, source: str, patterns: list[str] | None = None) -> AnyPath:
    """A folder with what `source` names; never one that --overwrite is to remove."""
    from mgie_jax.weights.hub import fetch

    is_path = is_remote(source) or Path(source).expanduser().exists()
    name, _, revision = (source, "", "") if is_path else source.partition("@")
    path = fetch(name, revision or None, patterns)
    output = getattr(args, "output", None)
    if output is not None and is_within(path, output):
        raise ValueError(f"{output} is, or holds, the source {source}; write elsewhere")
    return path


def _weights(args: argparse.Namespace, source: str) -> AnyPath:
    """As `_fetch`, of a folder of transformers: of repositories that hold the weights twice, safetensors alone."""
    path = _fetch(args, source, [*CONFIGS, "*.safetensors"])
    return path if any(path.glob("*.safetensors")) else _fetch(args, source, [*CONFIGS, "pytorch_model*.bin"])


def _fetch_file(args: argparse.Namespace, source: str) -> AnyPath:
    """A file at a path, or one of a repository."""
    path = to_path(source) if is_remote(source) else Path(source).expanduser()
    name, _, revision = source.partition("@")
    owner, *rest = name.split("/", 2)
    if path.exists() or path.is_absolute() or len(rest) < 2:
        if not path.is_file():
            raise ValueError(f"{source}: there is no such file; give a .ckpt or .safetensors file")
        return _fetch(args, source)
    repository = _fetch(args, f"{owner}/{rest[0]}" + (f"@{revision}" if revision else ""), [rest[1]])
    if not (repository / rest[1]).is_file():
        raise ValueError(f"{source}: {owner}/{rest[0]} has no file {rest[1]}")
    return repository / rest[1]


def _dtype(tensor: Any, dtype: str | None) -> Any:
    import numpy as np

    from mgie_jax.weights.tensor import is_floating

    return np.dtype(dtype) if dtype and is_floating(tensor.dtype) else np.dtype(tensor.dtype)


def _nbytes(tensor: Any, dtype: str | None) -> int:
    return math.prod(tensor.shape) * _dtype(tensor, dtype).itemsize


def _bar(total: int, what: str = "Writing") -> tqdm:
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, file=sys.stderr)

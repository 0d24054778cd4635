"""What moving weights costs: peak memory and time, beside `shutil.copy` of the same files.

    python benchmarks/stream_weights.py [--gb 4] [--torch] [--folder DIR]

Makes a checkpoint of LLaMA-7B's shapes in float16, in shards of 1 GB, and then, each in a process of its own:
copies the files with `shutil.copy`; streams them through `open_tensors` and `write_tensors`, as they are and cast to
bfloat16 (both write sha256 of all files, which the copy does not); with --torch, does so from `.bin` shards; and
loads them onto a mesh of eight CPU devices. Memory is the process's high-water mark over a bare interpreter's; for
the load, also over the shards that stay. Needs Linux, and three times the size free in DIR (a temporary folder).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, INNER, VOCABULARY, SHARD_BYTES = 4096, 11008, 32008, 10**9


def high_water() -> int:
    """Bytes. Not `ru_maxrss`, which begins with what the parent process had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """LLaMA's parameters as `MGIE` has them: {path: shape}, layers stacked."""
    stacked = {
        "input_layernorm/scale": (WIDTH,),
        "post_attention_layernorm/scale": (WIDTH,),
        **{f"self_attn/{name}_proj/kernel": (WIDTH, WIDTH) for name in "qkvo"},
        "mlp/gate_proj/kernel": (WIDTH, INNER),
        "mlp/up_proj/kernel": (WIDTH, INNER),
        "mlp/down_proj/kernel": (INNER, WIDTH),
    }
    return {
        "model/embed_tokens/embedding": (VOCABULARY, WIDTH),
        **{f"model/layers/{name}": (layers, *shape) for name, shape in stacked.items()},
        "model/norm/scale": (WIDTH,),
        "lm_head/kernel": (WIDTH, VOCABULARY),
    }


def template(layers: int, dtype) -> dict:
    import jax
    from flax.traverse_util import unflatten_dict

    return unflatten_dict({path: jax.ShapeDtypeStruct(s, dtype) for path, s in shapes(layers).items()}, sep="/")


def make(folder: Path, layers: int) -> int:
    """Writes the checkpoint; returns its bytes."""
    import numpy as np

    from mgie_jax.weights.rules import leaves
    from mgie_jax.weights.tensors import write_tensors

    noise = np.random.default_rng(0).standard_normal(2**24).astype(np.float16)

    class Noise:
        dtype = noise.dtype

        def __init__(self, shape):
            self.shape = shape

        def __getitem__(self, rows):
            shape = (len(range(*rows.indices(self.shape[0]))), *self.shape[1:])
            return np.resize(noise, shape)

    named = [(key, Noise(leaf.shape)) for leaf, _ in leaves(template(layers, np.float16)) for key in leaf.keys]
    write_tensors(folder, "model", named, shard_bytes=SHARD_BYTES)
    return sum(path.stat().st_size for path in folder.iterdir())


def copy(source: Path, target: Path, layers: int) -> None:
    for path in source.iterdir():
        shutil.copy(path, target / path.name)


def convert(source: Path, target: Path, layers: int, dtype=None) -> None:
    from mgie_jax.weights.tensors import open_tensors, write_tensors

    write_tensors(target, "model", open_tensors(source).items(), dtype, SHARD_BYTES)


def cast(source: Path, target: Path, layers: int) -> None:
    import ml_dtypes

    convert(source, target, layers, ml_dtypes.bfloat16)


def load(source: Path, target: Path, layers: int) -> None:
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from mgie_jax.weights.rules import from_torch, sharded
    from mgie_jax.weights.tensors import open_tensors

    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))

    def sharding_of(path, shape):
        axes = [None] * (len(shape) - 1) + ["tensor"]
        if path[-1] != "scale":
            axes[-2] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*axes))

    params = from_torch(template(layers, np.float16), open_tensors(source), "llama", place=sharded(sharding_of))
    jax.block_until_ready(params)


def in_process(phase: str, source: Path, target: Path, layers: int) -> dict:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    if phase == "load":
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    command = [sys.executable, __file__, "--phase", phase, str(source), str(target), str(layers)]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--torch", action="store_true", help="from PyTorch's .bin shards as well")
    parser.add_argument("--phase", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase:
        phase, source, target, layers = args.phase
        bare, begun = high_water(), time.perf_counter()
        PHASES[phase](Path(source), Path(target), int(layers))
        seconds, cpu = time.perf_counter() - begun, time.process_time()
        print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": high_water() - bare}))
        return

    layer = 2 * (4 * WIDTH**2 + 3 * WIDTH * INNER)
    layers = max(1, round((args.gb * 1e9 - 4 * VOCABULARY * WIDTH) / layer))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = Path(folder)
        source = folder / "source"
        source.mkdir()
        nbytes = make(source, layers)
        print(f"{nbytes / 1e9:.2f} GB in {len(list(source.glob('*.safetensors')))} shards, {layers} layers")
        runs = [("shutil.copy", "copy", source), ("streamed", "convert", source), ("streamed, cast", "cast", source)]
        if args.torch:
            pickles = folder / "pickles"
            pickles.mkdir()
            in_process("pickle", source, pickles, layers)
            runs.append(("streamed from .bin", "convert", pickles))
        copied = None
        for name, phase, origin in runs:
            target = folder / "target"
            target.mkdir()
            found = in_process(phase, origin, target, layers)
            shutil.rmtree(target)
            copied = copied or found
            print(f"{name:20} {found['seconds']:7.1f} s ({found['seconds'] / copied['seconds']:.2f} x the copy), "
                  f"CPU {found['cpu']:6.1f} s, peak {found['peak'] / 1e9:.2f} GB", flush=True)  # fmt: skip
        found = in_process("load", source, folder, layers)
        beyond = (found["peak"] - nbytes) / 1e9
        print(f"{'onto eight devices':20} {found['seconds']:7.1f} s, CPU {found['cpu']:6.1f} s, "
              f"peak {found['peak'] / 1e9:.2f} GB, {beyond:.2f} GB beyond the shards")  # fmt: skip


def pickle(source: Path, target: Path, layers: int) -> None:
    import numpy as np

    from mgie_jax.weights.tensors import open_tensors
    from mgie_jax.weights.torch_files import save_pickled

    by_file: dict[str, dict] = {}
    for key, tensor in open_tensors(source).items():
        by_file.setdefault(tensor.path.name.replace("safetensors", "bin"), {})[key] = tensor
    for name, tensors in by_file.items():
        save_pickled(target / name, {key: np.asarray(tensor) for key, tensor in tensors.items()})


PHASES = {"copy": copy, "convert": convert, "cast": cast, "load": load, "pickle": pickle}

if __name__ == "__main__":
    main()

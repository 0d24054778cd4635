"""The plans of docs/tpu.md: `mgie plan` of mgie_7b on TPUs, as a table and a picture.

    python benchmarks/tpu_table.py OUT [--only NAME ...]

Compiles what has no OUT/NAME.json yet (minutes and up to 11 GB each; needs libtpu: pip install 'mgie_jax[tpu]'), then
writes OUT/tpu.md and OUT/tpu.png of all there are.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

GIB = 2**30
# name -> what it is, and what is planned
PLANS = {
    # Slices with 8 examples a chip.
    "train-v5e-16": ("train, batch 128", "--mode train --topology v5e:4x4 --mesh fsdp=16 --batch 128"),
    "train-v5e-16-blocks": ("train, batch 128",
                            "--mode train --topology v5e:4x4 --mesh data=4,fsdp=4 --batch 128"),
    "train-v6e-16": ("train, batch 128", "--mode train --topology v6e:4x4 --mesh data=4,fsdp=4 --batch 128"),
    "train-v5p-16": ("train, batch 128", "--mode train --topology v5p:2x2x4 --mesh fsdp=16 --batch 128"),
    "train-v5e-64": ("train, batch 512", "--mode train --topology v5e:8x8 --mesh data=4,fsdp=16 --batch 512"),
    "train-v5e-256": ("train, batch 2048", "--mode train --topology v5e:16x16 --mesh data=16,fsdp=16 --batch 2048"),
    "train-v5e-2x16": ("train, batch 256",
                       "--mode train --topology v5e:4x4 --slices 2 --mesh data=2,fsdp=16 --batch 256"),
    "train-v5e-4x16": ("train, batch 512",
                       "--mode train --topology v5e:4x4 --slices 4 --mesh data=4,fsdp=16 --batch 512"),
    "edit-v6e-1": ("edit, 1 photo", "--mode edit --topology v6e:1x1 --mesh 1,1,1 --batch 1"),
    "edit-v5e-4": ("edit, 1 photo", "--mode edit --topology v5e:2x2 --mesh tensor=4 --batch 1"),
    "edit-v5e-16": ("edit, 32 photos", "--mode edit --topology v5e:4x4 --mesh data=4,tensor=4 --batch 32"),
    "prepare-v5e-4": ("prepare, 16 examples", "--mode prepare --topology v5e:2x2 --mesh tensor=4 --batch 16"),
}  # fmt: skip
PARTS = {"weights": "tab:blue", "state": "tab:cyan", "batch and others": "tab:green", "temporaries": "tab:orange"}
BOUNDS, LABELS = ("compute", "hbm", "ici", "dcn"), ("compute", "HBM", "ICI", "DCN")


def command(name: str) -> list[str]:
    return ["mgie", "plan", "--config", "configs/mgie_7b.py", *PLANS[name][1].split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=PLANS, default=list(PLANS), help=", ".join(PLANS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in tqdm(args.only, unit="plan"):
        file = args.out / f"{name}.json"
        if file.exists():
            continue
        program = [sys.executable, "-m", "mgie_jax.cli", *command(name)[1:], "--no-advice", "--json"]
        done = subprocess.run(program, stdout=subprocess.PIPE, text=True)
        if done.returncode not in (0, 3):
            sys.exit(f"{name}: mgie plan ended with exit code {done.returncode}")
        partial = file.with_suffix(".part")
        partial.write_text(done.stdout)
        partial.replace(file)
    plans = {name: json.loads((args.out / f"{name}.json").read_text())
             for name in PLANS if (args.out / f"{name}.json").exists()}  # fmt: skip
    (args.out / "tpu.md").write_text(table(plans))
    draw(plans).savefig(args.out / "tpu.png", dpi=110)
    print(table(plans))


def where(plan: dict) -> str:
    slices = "" if plan["slices"] == 1 else f"{plan['slices']} x "
    return slices + plan["topology"]


def mesh(plan: dict) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"


def times(plan: dict) -> dict[str, float]:
    """Seconds of a batch: of compute, HBM, ICI and DCN, of all programs together."""
    return {bound: sum(program["roofline"][bound] for program in plan["programs"]) for bound in BOUNDS}


def sent(plan: dict, dcn: bool) -> float:
    """Bytes that a device sends for a batch, within its slice or between slices."""
    return sum(
        program["runs"] * flow["sent"] for program in plan["programs"] for flow in program["flows"]
        if flow["dcn"] == dcn
    )  # fmt: skip


def table(plans: dict[str, dict]) -> str:
    head = ("what", "where", "mesh", "memory, GiB a device", "compute", "HBM", "ICI", "DCN", "at best", "MFU at best",
            "sent, GB a device")  # fmt: skip
    rows = []
    for name, plan in plans.items():
        seconds = times(plan)
        over_dcn = sent(plan, True)
        rows.append((
            PLANS[name][0], where(plan), mesh(plan),
            f"{plan['total_bytes'] / GIB:.1f} of {plan['hbm_bytes'] / GIB:.1f}" + ("" if plan["fits"] else " (no)"),
            *(f"{seconds[bound]:.2f} s" if seconds[bound] else "" for bound in BOUNDS),
            f"{plan['best_seconds']:.2f} s", f"{100 * plan['mfu']:.0f} %",
            (f"{sent(plan, False) / 1e9:.1f}" if plan["devices"] > 1 else "")
            + (f", DCN {over_dcn / 1e9:.2f}" if over_dcn else ""),
        ))  # fmt: skip
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def memory(plan: dict) -> dict[str, float]:
    """GiB by part, of the program that takes most."""
    program = max(plan["programs"], key=lambda program: program["total_bytes"])
    held = dict.fromkeys(PARTS, 0.0)
    for part, size in program["parts"].items():
        kind = {"state": "state", "frozen": "weights", "params": "weights", "beside": "weights"}.get(part.split("/")[0])
        held[kind or "batch and others"] += size / GIB
    held["temporaries"] = program["total_bytes"] / GIB - sum(held.values())
    return held


def draw(plans: dict[str, dict]) -> Figure:
    """Memory by part beside what there is, and each plan's times beside the best."""
    labels = [f"{PLANS[name][0]}\n{where(plan)}, {mesh(plan)}" for name, plan in plans.items()]
    picture = Figure(figsize=(13, 0.62 * len(plans) + 1.6), layout="constrained")
    left, right = picture.subplots(1, 2)
    for place, plan in enumerate(plans.values()):
        start, held = 0.0, memory(plan)
        for part, color in PARTS.items():
            left.barh(place, held[part], left=start, color=color, label=part if place == 0 else None)
            start += held[part]
        left.plot([plan["hbm_bytes"] / GIB] * 2, [place - 0.45, place + 0.45], color="black", linewidth=2)
        for at, seconds in enumerate(times(plan).values()):
            share = seconds / plan["best_seconds"]
            label = LABELS[at] if place == 0 else None
            right.barh(place + 0.2 * (at - 1.5), share, 0.2, color=f"C{at}", label=label)
        right.text(1.02, place, f"{plan['best_seconds']:.2f} s", va="center", fontsize=8)
    left.set_title("memory of a device by part, GiB; black: what there is", fontsize=10)
    right.set_title("time of each resource, as a share of the best possible time", fontsize=10)
    right.set_xlim(0, 1.12)
    for axis in (left, right):
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
        axis.legend(fontsize=8, ncol=4, loc="upper center", bbox_to_anchor=(0.5, -0.04))
    return picture


if __name__ == "__main__":
    main()

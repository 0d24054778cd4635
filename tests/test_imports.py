"""The arrows: what may import what, read from the source without running it."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import mgie_jax

PACKAGE = Path(mgie_jax.__file__).parent

# Lower layers know nothing of higher ones. Within a layer imports are allowed as long as they make no circle.
LAYERS = [
    {"types", "paths", "distributed", "sharding", "torus", "diffusion", "text", "photo", "compare"},
    {"kept", "executables", "compilation", "models"},
    {"weights", "edit", "data", "train"},
    {"programs", "first", "editor", "loading", "warmup", "batch", "eval", "plan", "bench"},
    {"cli", "demo", "__init__"},
]
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}

# Third-party packages that only some files may import; an empty tuple means nowhere.
CONFINED = {
    "torch": ("weights/torch_files.py", "bench/torch_"),
    "diffusers": ("bench/torch_",),
    "tensorflow": (),
    "tensorflow_datasets": ("data/",),
    "gradio": ("demo.py",),
}


def _imports(tree: ast.AST, module: list[str]) -> set[str]:
    """Dotted names a file may import, `from a import b` as `a.b`; imports inside functions count."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level] if node.level else []
            base = [*base, *((node.module or "").split(".") if node.module else [])]
            found |= {".".join([*base, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return found


def violations(package: Path) -> list[str]:
    """Every import in `package` that breaks a rule above, one line each."""
    faults, edges = [], defaultdict(set)
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        unit = relative.parts[0].removesuffix(".py")
        if unit not in RANK:
            faults.append(f"{relative}: {unit} has no layer; give it one in {Path(__file__).name}")
            continue
        # A package's __init__ stands for the package: relative imports start one level higher in a module.
        module = [package.name, *relative.with_suffix("").parts]
        for name in sorted(_imports(ast.parse(path.read_text()), module)):
            top, *rest = name.split(".")
            if top == package.name:
                target = rest[0] if rest and rest[0] in RANK else "__init__"
                if RANK[target] > RANK[unit]:
                    faults.append(f"{relative}: imports {name}, which is above {unit}")
                elif target != unit:
                    edges[unit].add(target)
            allowed = CONFINED.get(top)
            if allowed is not None and not relative.as_posix().startswith(allowed or ("\0",)):
                faults.append(f"{relative}: imports {name}, allowed only in {allowed or 'no file'}")
    return faults + _circles(edges)


def _circles(edges: dict[str, set[str]]) -> list[str]:
    # __init__ and the entry points meet lazily: `mgie_jax.load` is fetched when it is first used.
    edges = {unit: {to for to in targets if to != "__init__"} for unit, targets in edges.items()}
    faults = []
    for start in edges:
        reached, todo = set(), list(edges[start])
        while todo:
            unit = todo.pop()
            if unit not in reached:
                reached.add(unit)
                todo += edges.get(unit, ())
        if start in reached:
            faults.append(f"{start}: takes part in a circle of imports")
    return faults


def test_every_arrow_points_downwards():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    "path, source, words",
    [
        ("models/unet.py", "from mgie_jax.weights import files", "above models"),
        ("models/unet.py", "from mgie_jax import train", "above models"),
        ("models/unet.py", "from ..train.step import step", "above models"),
        ("models/unet.py", "from mgie_jax import __version__", "above models"),
        ("text/decode.py", "def f():\n    import mgie_jax.models.llama", "above text"),
        ("train/step.py", "import mgie_jax.cli", "above train"),
        ("weights/rules.py", "import torch", "allowed only"),
        ("models/vae.py", "from torch.nn import Linear", "allowed only"),
        ("models/vae.py", "import importlib\nimportlib.import_module('diffusers')", "allowed only"),
        ("train/loop.py", "import tensorflow_datasets as tfds", "allowed only"),
        ("data/builder.py", "import tensorflow as tf", "allowed only"),
        ("drawer.py", "", "no layer"),
    ],
)
def test_a_wrong_arrow_is_caught(tmp_path, path, source, words):
    file = tmp_path / "mgie_jax" / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    (fault,) = violations(file.parents[len(Path(path).parts) - 1])
    assert path in fault and words in fault


def test_a_circle_within_a_layer_is_caught(tmp_path):
    for path, source in [("train/a.py", "import mgie_jax.data.b"), ("data/b.py", "import mgie_jax.train.a")]:
        (tmp_path / "mgie_jax" / path).parent.mkdir(parents=True)
        (tmp_path / "mgie_jax" / path).write_text(source)
    assert len(violations(tmp_path / "mgie_jax")) == 2


@pytest.mark.parametrize(
    "path, source",
    [
        (
            "models/unet.py",
            "from mgie_jax.models import blocks\nfrom mgie_jax.diffusion.schedule import betas",
        ),
        ("weights/torch_files.py", "import torch"),
        ("data/builder.py", "import tensorflow_datasets as tfds"),
        ("train/step.py", "from mgie_jax.data import generate"),
        ("cli/__init__.py", "from mgie_jax import __version__\nfrom .edit import run"),
        ("__init__.py", "def f():\n    from mgie_jax import editor"),
    ],
)
def test_a_right_arrow_passes(tmp_path, path, source):
    file = tmp_path / "mgie_jax" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    assert violations(file.parents[len(Path(path).parts) - 1]) == []

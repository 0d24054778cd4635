"""What an installation brings: the photos, the command, and neither PyTorch nor TensorFlow."""

import importlib.metadata
import os
import runpy
import subprocess
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

import mgie_jax

ROOT = Path(mgie_jax.__file__).parents[1]
UNWANTED = {"torch", "torchvision", "tensorflow", "tensorflow-cpu", "tf-nightly", "keras", "diffusers"}

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source tree")


@pytest.fixture
def arguments(monkeypatch):
    """The arguments that setup.py gives to setup()."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def _name(requirement: Requirement) -> str:
    return requirement.name.lower().replace("_", "-").replace(".", "-")


def test_default_requirements_bring_neither_torch_nor_tensorflow(arguments):
    todo = [Requirement(line) for line in arguments["install_requires"]]
    seen = {}
    while todo:
        requirement = todo.pop()
        name = _name(requirement)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen[name] = requirement
        # Extras named in the requirement itself (etils[epath]) are followed too.
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                todo.append(needed)
    assert len(seen) > len(arguments["install_requires"])
    assert not UNWANTED & set(seen)


def test_installed_versions_satisfy_the_floors(arguments):
    for line in arguments["install_requires"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True), line


def test_every_source_folder_is_packaged(arguments):
    folders = {path.parent for path in (ROOT / "mgie_jax").rglob("*.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} <= set(arguments["packages"])
    assert not any("assets" in package for package in arguments["packages"])


def test_version_licence_and_command(arguments):
    assert arguments["version"] == mgie_jax.__version__
    assert arguments["entry_points"] == {"console_scripts": ["mgie = mgie_jax.cli:main"]}
    assert "Apache License" in (ROOT / "LICENSE").read_text()


@pytest.mark.skipif(os.name == "nt", reason="make")
def test_make_edit_passes_names_with_spaces_and_quotes_through(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / name).touch()
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, body in [("python", "echo install >> installs"), ("mgie", 'printf "%s\\n" "$@" > arguments')]:
        (binaries / name).write_text(f"#!/bin/sh\n{body}\n")
        (binaries / name).chmod(0o755)
    command = [
        "make",
        "edit",
        "PHOTO=it's my photo.jpg",
        'INSTRUCTION=add a "blue; tint"',
        "OUT=my out/a.png",
    ]
    for _ in range(2):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    expected = ["edit", "-o", "my out/a.png", "--compare", "--", "it's my photo.jpg", 'add a "blue; tint"']
    assert (tmp_path / "arguments").read_text().splitlines() == expected
    assert (tmp_path / "installs").read_text().count("install") == 1

"""Launchers in a checkout of their own, with stand-ins for the programs they call."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mgie_jax

ROOT = Path(mgie_jax.__file__).parents[1]
LAUNCH = ROOT / "launch"

RECORD = '#!/usr/bin/env bash\n{ printf "%s" "${0##*/}"; printf " %q" "$@"; echo; } >>"$FAKE/calls"\n'


class Site:
    """A folder with bin/ (the only commands beside the system's), checkout/, and calls (what was called, in order)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / "checkout"
        (folder / "bin").mkdir()
        shutil.copytree(LAUNCH, self.checkout / "launch", ignore=shutil.ignore_patterns("__pycache__"))
        (self.checkout / "setup.py").touch()
        self.env = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "FAKE": str(folder), "HOME": str(folder),
                    "TMPDIR": str(folder)}  # fmt: skip

    def fake(self, name: str, body: str = "") -> None:
        """A command that writes down its call and then does `body`, a piece of bash."""
        path = self.folder / "bin" / name
        path.write_text(RECORD + body)
        path.chmod(0o755)

    def only(self, *programs: str) -> None:
        """From now on these are the system's only commands."""
        for program in programs:
            (self.folder / "bin" / program).symlink_to(shutil.which(program))
        self.env["PATH"] = str(self.folder / "bin")

    def git(self) -> None:
        for arguments in (["init", "--quiet"], ["add", "--all"]):
            subprocess.run(["git", *arguments], cwd=self.checkout, env=self.env, check=True)

    def run(self, script: str, *arguments: str, **more) -> subprocess.CompletedProcess:
        command = [self.checkout / "launch" / script, *arguments]
        if script.endswith(".py"):
            command = [sys.executable, *command]
        env = self.env | more.pop("env", {})
        return subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=60, **more)

    @property
    def calls(self) -> list[str]:
        calls = self.folder / "calls"
        return calls.read_text().splitlines() if calls.exists() else []


def has(*programs: str) -> bool:
    """Whether this is a source tree on a machine with these programs."""
    return LAUNCH.is_dir() and os.name == "posix" and all(map(shutil.which, programs))

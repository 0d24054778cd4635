"""Run one command on every host of a TPU VM pod: create the TPUs, install this checkout on each host, run, resume.

    python launch/tpu_vm.py --name mgie --zone us-west4-a --topology v5e:4x4 --spot --delete -- \\
        mgie train --config configs/mgie_7b.py --workdir gs://my-bucket/out --config.init=gs://my-bucket/mgie_7b_jax \\
        --config.data=gs://my-bucket/datasets/ipr2pr-expressive
    python launch/tpu_vm.py --name mgie --zone us-east5-a --topology v6e:4x4 --slices 2 --create-flag=--reserved -- ...

TPUs that are taken away are created again and the command goes on there, from its last checkpoint. The command does not
depend on the connection: where this script was stopped, the same command line finds the run and follows it. WORKDIR
must be in a bucket: the disks of the hosts go when the TPUs do.

exit codes: the command's own where it is 0, 2, 3 or 130; 1 where it failed in other ways too often in a row
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from pod import Parser

ROOT = Path(__file__).resolve().parents[1]
FINAL = (2, 3, 130)  # of `mgie`: bad input, a loss that is not finite, Ctrl-C; again would end the same way
AGAIN = 75  # of `mgie train`: told to leave, and saved
FAILURES = 5  # in a row, of any other kind: a broken connection, a host that died, a fault of the program
ENDED = re.compile(rb"mgie-host: exit code (\d+)\n")  # launch/host.sh's last line

# Of a queued resource, and of the TPU VMs it has made. In all other states something is under way.
READY, FAILED, LOST = "ACTIVE READY", "FAILED", ("SUSPENDED", "PREEMPTED", "TERMINATED", "STOPPED")


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--zone", required=True, help="where the TPUs are to be, as in us-west4-a")
    parser.add_argument("--project", help="Google Cloud project (default: that of gcloud)")
    parser.add_argument("--extras", default="tpu,gcs", help="extras of the package to install (default: tpu,gcs)")
    parser.add_argument("--create-flag", metavar="FLAG", action="append", default=[],
                        help="hand FLAG to `queued-resources create`, as in --create-flag=--reserved")  # fmt: skip
    parser.add_argument("--poll", metavar="SECONDS", type=float, default=30.0, help="between looks (default: 30)")
    parser.add_argument("--delete", action="store_true", help="delete the TPUs at the end, good or bad")
    args = parser.parse()
    if args.slice.generation.runtime is None:
        parser.error("GKE alone has these TPUs; use launch/gke.py")
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        parser.error(f"{ROOT} is no git checkout, and what git knows of is what the hosts get")
    if not args.dry_run and shutil.which("gcloud") is None:
        parser.error("gcloud: there is no such command; install the Google Cloud CLI")
    pod = Pod(args)
    if args.dry_run:
        pod.show()
        return 0
    try:
        return pod.run()
    except KeyboardInterrupt:
        say("stopped following; on the hosts the command goes on, and the same command line follows it again")
        return 130
    finally:
        pod.close()


class Pod:
    """A queued resource of Cloud TPU: one TPU VM a slice, each of one or more hosts."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.reached = self.copied = False
        self.nodes = [args.name] if args.slices == 1 else [f"{args.name}-{i}" for i in range(args.slices)]
        self.place = [f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else [])]
        self.files = checkout()
        # Named after its contents, so that a host knows what it has.
        self.folder = f"mgie-{fingerprint(self.files)}"
        self.archive = Path(tempfile.gettempdir()) / f"{self.folder}-{os.getpid()}.tar.gz"

    def create(self) -> list[str]:
        args = self.args
        nodes = [f"--node-id={args.name}"]
        if args.slices > 1:  # their names are then PREFIX-0, PREFIX-1, ...
            nodes = [f"--node-count={args.slices}", f"--node-prefix={args.name}"]
        return self.gcloud("queued-resources", "create", args.name, *nodes, *args.slice.tpu_vm_flags,
                           f"--runtime-version={args.slice.generation.runtime}", *(["--spot"] if args.spot else []),
                           *args.create_flag)  # fmt: skip

    def delete(self) -> list[str]:
        return self.gcloud("queued-resources", "delete", self.args.name, "--force", "--quiet")

    def copy(self) -> list[str]:
        return self.gcloud("queued-resources", "scp", str(self.archive), f"{self.args.name}:{self.folder}.tar.gz",
                           "--worker=all", "--node=all")  # fmt: skip

    def start(self) -> list[str]:
        """Unpacks, unless it is there, and lets launch/host.sh do the rest; what runs already is only followed.

        On TPU VMs JAX finds the number of the process, the number of processes and the coordinator in the metadata of
        the machine (GceTpuCluster in jax/_src/clusters/cloud_tpu_cluster.py), with several slices too, if libtpu and
        requests are installed: the extra `tpu` has both.
        """
        folder = self.folder
        unpack = (
            f"test -d {folder} || (mkdir -p {folder}.part && tar -xzf {folder}.tar.gz -C {folder}.part && "
            f"mv {folder}.part {folder}) || exit 1"  # tar's own would be mistaken for that of mgie
        )
        run = shlex.join(["bash", f"{folder}/launch/host.sh", self.args.extras, "--", *self.args.command])
        # Unless told so, gcloud starts on 64 hosts and waits for their end before it starts on others.
        return self.gcloud("queued-resources", "ssh", self.args.name, "--worker=all", "--node=all", "--batch-size=all",
                           "--ssh-flag=-oServerAliveInterval=30", f"--command={unpack}; {run}")  # fmt: skip

    def look(self, kind: str, name: str) -> list[str]:
        what = "state.state" if kind == "queued-resources" else "state"
        return self.gcloud(kind, "describe", name, f"--format=value({what})")

    def gcloud(self, kind: str, verb: str, name: str, *more: str) -> list[str]:
        return ["gcloud", "compute", "tpus", kind, verb, name, *more, *self.place]

    def show(self) -> None:
        """Prints the commands of a run that nothing interrupts."""
        steps = [("create the TPUs", self.create()), ("wait for ACTIVE", self.look("queued-resources", self.args.name))]
        steps += [("wait for READY", self.look("tpu-vm", node)) for node in self.nodes]
        steps += [(f"copy this checkout, {len(self.files)} files", self.copy()), ("install and run", self.start())]
        steps += [("delete the TPUs", self.delete())] if self.args.delete else []
        for comment, command in steps:
            print(f"# {comment}\n{shlex.join(command)}")

    def run(self) -> int:
        """Runs the command to its end, on as many TPUs, one after the other, as that takes."""
        pack(self.files, self.archive)
        self.ready()
        failures = 0
        while (code := self.attempt()) not in (0, *FINAL):
            say(f"ended with exit code {code}; looking after the TPUs, then going on from the last checkpoint")
            if code != AGAIN:
                self.copied = False
                time.sleep(self.args.poll)  # it takes a moment until they are known to be gone
            if self.ready() or code == AGAIN:
                failures = 0
            elif (failures := failures + 1) == FAILURES:
                say(f"failed {FAILURES} times in a row, the last time with exit code {code}; giving up")
                code = 1
                break
        if self.args.delete:
            call(self.delete())
        else:
            say(f"the TPUs are still there; to delete them: {shlex.join(self.delete())}")
        return code

    def ready(self) -> bool:
        """Returns when all TPUs are; whether they are other ones than before, or it took waiting for them."""
        changed, before = False, None
        while (state := self.state()) != READY:
            if state == FAILED:
                request = self.gcloud("queued-resources", "describe", self.args.name)
                sys.exit(f"tpu_vm: the request for TPUs has failed; why: {shlex.join(request)}")
            if state != before:
                say(f"TPUs: {state}")
            changed, before, self.copied = True, state, False
            if state in LOST:
                call(self.delete())
            elif state == "NOT_FOUND":
                call(self.create())
            else:
                time.sleep(self.args.poll)
        return changed

    def state(self) -> str:
        """READY, or what keeps the TPUs from being it."""
        state = self.read("queued-resources", self.args.name)
        if state != "ACTIVE":
            return state
        # A queued resource can be ACTIVE some time longer than its TPUs are there.
        states = {self.read("tpu-vm", node) for node in self.nodes} - {"READY"}
        lost = [state for state in states if state in LOST]
        if lost:
            return lost[0]
        return "not READY yet" if states else READY

    def read(self, kind: str, name: str) -> str:
        """A state as gcloud prints it; NOT_FOUND where there is no such thing."""
        command = self.look(kind, name)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode == 0 or "NOT_FOUND" in done.stderr:
            self.reached = True
            return done.stdout.strip() if done.returncode == 0 else "NOT_FOUND"
        if not self.reached:  # a mistake; later it is the connection
            sys.exit(f"tpu_vm: {shlex.join(command)}: {done.stderr.strip()}")
        return f"out of reach, {done.stderr.strip()}"

    def attempt(self) -> int:
        """Copies, installs, runs and follows, on all hosts; the exit code that says most of those of the hosts."""
        if not self.copied and (code := call(self.copy(), check=False)):
            return code
        self.copied = True
        codes, end = set(), b""
        process = subprocess.Popen(self.start(), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        while chunk := process.stdout.read1():  # by lines, a progress bar would show at its end
            end = end[-64:] + chunk
            codes |= {int(code) for code in ENDED.findall(end)}
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
        # gcloud's own exit code is one host's. But where one host fails, the others die of that.
        codes.add(process.wait())
        return next((code for code in (*FINAL, AGAIN) if code in codes), max(codes))

    def close(self) -> None:
        self.archive.unlink(missing_ok=True)


def checkout() -> list[str]:
    """The files of this checkout as they are, changed and new ones too, but none that git ignores."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return sorted(file for file in set(listed.stdout.split("\0")) if file and (ROOT / file).is_file())


def fingerprint(files: list[str]) -> str:
    stats = ((file, (ROOT / file).stat()) for file in files)
    return hashlib.sha256(repr([(file, s.st_size, s.st_mtime_ns) for file, s in stats]).encode()).hexdigest()[:12]


def pack(files: list[str], archive: Path) -> None:
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for file in files:
            tar.add(ROOT / file, arcname=file)


def call(command: list[str], check: bool = True) -> int:
    """Runs a command in sight of the user; one that fails ends this script, unless its exit code is asked for."""
    say(shlex.join(command))
    code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    if check and code:
        sys.exit(f"tpu_vm: gcloud ended with exit code {code}")
    return code


def say(text: str) -> None:
    print(f"tpu_vm: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

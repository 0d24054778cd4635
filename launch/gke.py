"""Run one command on every host of TPU slices in GKE, as a JobSet: launch/jobset.yaml, filled in.

    docker build -f launch/Dockerfile -t IMAGE . && docker push IMAGE
    python launch/gke.py --name mgie --topology v5e:4x4 --image IMAGE --spot -- \\
        mgie train --config configs/mgie_7b.py --workdir gs://my-bucket/out --config.init=gs://my-bucket/mgie_7b_jax \\
        --config.data=gs://my-bucket/datasets/ipr2pr-expressive
    python launch/gke.py --name mgie --topology v6e:4x4 --slices 2 --image IMAGE --dry-run -- ... > mgie.yaml

kubectl must be connected to a cluster that has JobSet's controller and a node pool for every slice. JobSet starts all
hosts again when one is lost, and the command goes on from its last checkpoint; exit codes 2 and 3 end it for good.
WORKDIR must be in a bucket: containers keep nothing.
"""

import argparse
import json
import shlex
import shutil
import string
import subprocess
import sys
from pathlib import Path

from pod import Parser, count, name

TEMPLATE = Path(__file__).with_name("jobset.yaml")
SPOT_SELECTOR = 'cloud.google.com/gke-spot: "true"'
SPOT_TOLERATION = '- {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}'


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--image", required=True, help="a container image with this package: launch/Dockerfile")
    parser.add_argument("--namespace", type=name, default="default", help="default: default")
    parser.add_argument("--max-restarts", metavar="N", type=count, default=100, help="how often at most (default: 100)")
    args = parser.parse()
    manifest = render(args)
    command = ["kubectl", "create", "-f", "-"]
    if args.dry_run:
        print(f"# {shlex.join(command)}\n{manifest}", end="")
        return 0
    if shutil.which("kubectl") is None:
        parser.error("kubectl: there is no such command; install it and connect it to the cluster")
    code = subprocess.run(command, input=manifest, text=True).returncode
    if code:
        print("gke: nothing was started", file=sys.stderr)
        return 1
    pods = f"-n {args.namespace} -l jobset.sigs.k8s.io/jobset-name={args.name}"
    print(f"look:   kubectl get pods {pods}")
    print(f"follow: kubectl logs {pods} -f --prefix --max-log-requests={args.slices * args.slice.hosts}")
    print(f"end:    kubectl delete jobset {args.name} -n {args.namespace}")
    return 0


def render(args: argparse.Namespace) -> str:
    """The JobSet as YAML."""
    text = string.Template(TEMPLATE.read_text()).substitute(
        name=args.name,
        namespace=args.namespace,
        max_restarts=args.max_restarts,
        slices=args.slices,
        hosts=args.slice.hosts,
        chips_per_host=args.slice.chips_per_host,
        accelerator=args.slice.generation.accelerator,
        topology=args.slice.shape,
        spot_selector=SPOT_SELECTOR if args.spot else "",
        spot_toleration=SPOT_TOLERATION if args.spot else "",
        image=json.dumps(args.image),  # which YAML reads as it is
        command=json.dumps(args.command),
    )
    return "".join(line for line in text.splitlines(keepends=True) if line.strip())


if __name__ == "__main__":
    sys.exit(main())

"""launch/gke.py and its JobSet: the fields JobSet, Job and Pod have, with the numbers of the slice, and what is run."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.launch.tools import has

pytestmark = pytest.mark.skipif(not has(), reason="not a source tree")

SCHEMA = json.loads(Path(__file__).with_name("jobset.schema.json").read_text())
COMMAND = ["mgie", "train", "--config", "configs/mgie_7b.py", "--workdir", "gs://bucket/o ut", "--config.x='${y}\"'"]


def arguments(topology="v5e:4x4", *more):
    return ["--name", "run", "--topology", topology, "--image", "registry/mgie:1", *more, "--", *COMMAND]


def manifest(site, *given):
    """The manifest of a dry run, and its one replicated job."""
    run = site.run("gke.py", *arguments(*given[:-1], *given[-1:], "--dry-run"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("# kubectl create -f -\n") and site.calls == []
    read = yaml.safe_load(run.stdout)
    jsonschema.validate(read, SCHEMA)
    return read, read["spec"]["replicatedJobs"][0]


@pytest.mark.parametrize(
    ("topology", "hosts", "chips", "accelerator"),
    [("v4:2x2x2", 2, 4, "tpu-v4-podslice"), ("v5e:1x1", 1, 1, "tpu-v5-lite-podslice"),
     ("v5e:4x4", 4, 4, "tpu-v5-lite-podslice"), ("v5p:2x2x4", 4, 4, "tpu-v5p-slice"),
     ("v6e:8x16", 32, 4, "tpu-v6e-slice"), ("v7x:4x4x4", 16, 4, "tpu7x")],
)  # fmt: skip
def test_the_slice(site, topology, hosts, chips, accelerator):
    _, replicated = manifest(site, topology)
    job = replicated["template"]["spec"]
    assert job["completions"] == job["parallelism"] == hosts and replicated["replicas"] == 1
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": chips}, "requests": {"google.com/tpu": chips}}
    assert container["image"] == "registry/mgie:1" and container["command"] == [*COMMAND, "--config.distributed=True"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["google.com/tpu"]


def test_several_spot_slices(site):
    read, replicated = manifest(site, "v6e:4x4", "--slices", "2", "--spot", "--max-restarts", "7", "--namespace", "ml")
    assert read["metadata"]["namespace"] == "ml" and read["spec"]["failurePolicy"]["maxRestarts"] == 7
    # Slices on node pools of their own: chips of one are wired to each other alone.
    assert read["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert replicated["replicas"] == 2 and pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"} in (
        pod["tolerations"]
    )


def outcome(read, code, disrupted=False):
    """What becomes of the JobSet after a pod has failed, as Kubernetes and JobSet document it: first rule that fits."""
    job = read["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    reason = "BackoffLimitExceeded" if job["backoffLimit"] == 0 else None
    for rule in job["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            exits = rule["onExitCodes"]
            assert exits["containerName"] == container["name"] and exits["operator"] == "In"
            fits = code in exits["values"]
        else:
            fits = disrupted and {"type": "DisruptionTarget", "status": "True"} in rule["onPodConditions"]
        if fits:
            reason = {"FailJob": "PodFailurePolicy", "Count": reason}[rule["action"]]
            break
    for rule in read["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet"


def test_what_starts_again(site):
    read, _ = manifest(site, "v5e:4x4")
    assert [outcome(read, code) for code in (1, 75, 134, 137, 143)] == ["RestartJobSet"] * 5
    assert [outcome(read, code) for code in (2, 3)] == ["FailJobSet"] * 2
    assert outcome(read, 2, disrupted=True) == "RestartJobSet"
    # Kubernetes has a policy for pods' failures only where they are not started again in place.
    assert read["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_schema_refuses(site):
    read, replicated = manifest(site, "v5e:4x4")
    read["spec"]["failurePolicy"]["rules"][0]["name"] = "never-again"
    with pytest.raises(jsonschema.ValidationError, match="never-again"):
        jsonschema.validate(read, SCHEMA)
    read, replicated = manifest(site, "v5e:4x4")
    replicated["template"]["spec"]["completion"] = 4
    with pytest.raises(jsonschema.ValidationError, match="completion"):
        jsonschema.validate(read, SCHEMA)


def test_it_is_handed_to_kubectl(site):
    site.fake("kubectl", 'cat >"$FAKE/manifest"; echo jobset.jobset.x-k8s.io/run created')
    run = site.run("gke.py", *arguments())
    assert run.returncode == 0 and site.calls == ["kubectl create -f -"]
    dry = site.run("gke.py", *arguments("v5e:4x4", "--dry-run"))
    assert dry.stdout.partition("\n")[2] == (site.folder / "manifest").read_text()
    assert "kubectl logs -n default -l jobset.sigs.k8s.io/jobset-name=run -f" in run.stdout


def test_what_kubectl_refuses_is_an_error(site):
    site.fake("kubectl", 'echo "Error: jobsets run already exists" >&2; exit 1')
    run = site.run("gke.py", *arguments())
    assert run.returncode == 1 and "already exists" in run.stderr and "nothing was started" in run.stderr
    assert "follow" not in run.stdout

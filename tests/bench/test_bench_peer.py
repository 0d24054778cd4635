"""The protocol of a peer, with a process that knows neither PyTorch nor networks."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mgie_jax.bench import peer

FAKE = """
import json, sys, time
import numpy as np
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[2]
def tell(answer): print("libraries print " + "%s" + json.dumps(answer), flush=True)
request = json.loads((folder / "request.json").read_text())
inputs = dict(np.load(folder / "inputs.npz"))
if "say" in request:
    print("Traceback\\n" + request["say"], file=sys.stderr)
    sys.exit(3)
if "child" in request:
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "child").write_text(str(child.pid))
print("something else")
tell({"ready": True})
for line in sys.stdin:
    order = json.loads(line)
    print("more noise")
    if "run" in order:
        np.savez(order["to"], output=2 * inputs["x"])
        tell({})
    elif "lap" in order:
        if order["lap"] == "broken":
            tell({"error": "RuntimeError: no compiler"})
            sys.exit(1)
        tell({"seconds": order["runs"] * (0.25 if order["minus"] else 1.0)})
    else:
        tell({"peak": 2, "running": 1, "what": order["memory"]})
"""


@pytest.fixture
def worker(tmp_path):
    """Starts one with a request, and ends it."""
    (tmp_path / "fake.py").write_text(FAKE % peer.ANSWER.replace("\x1e", "\\x1e"))
    made = []

    def start(**request):
        peer.write_request(tmp_path, request, {"x": np.arange(3)})
        made.append(peer.Worker(tmp_path, "torch eager", (sys.executable, str(tmp_path / "fake.py"))))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_it_computes_and_times(worker):
    one = worker()
    assert list(one.outputs("unet")["output"]) == [0, 2, 4]
    assert one.lap("unet", 3) == 3.0 and one.lap("unet", 4, minus=True) == 1.0
    assert one.memory("unet") == {"peak": 2, "running": 1, "what": "unet"}


def test_what_it_says_in_the_end_is_told(worker, tmp_path):
    with pytest.raises(peer.PeerFailed, match="torch eager ended with code 3: ImportError: no diffusers"):
        worker(say="ImportError: no diffusers")


def test_an_error_of_a_task_is_told(worker):
    with pytest.raises(peer.PeerFailed, match="torch eager: RuntimeError: no compiler"):
        worker().lap("broken", 1)


def alive(process):
    try:
        return "(zombie)" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_closing_ends_what_it_has_started(worker, tmp_path):
    one = worker(child=True)
    child = int((tmp_path / "child").read_text())
    one.close()
    until = time.monotonic() + 5
    while alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(child)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(peer, "NEEDS", ("numpy", "no_such_package"))
    with pytest.raises(ValueError, match=r"--peer torch needs no_such_package; pip install 'mgie_jax\[bench\]'"):
        peer.require("torch")

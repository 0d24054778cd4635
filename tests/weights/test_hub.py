"""Sources by name, against a mirror of the hub's API served from this process."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import mgie_jax
from mgie_jax.weights.hub import fetch
from mgie_jax.weights.tensors import ModelDirError

COMMITS = {"main": "a" * 40, "old": "b" * 40}
FILES = {
    "a" * 40: {"unet/config.json": b'{"new": 1}', "unet/weights.safetensors": b"new", "README.md": b"card"},
    "b" * 40: {"unet/config.json": b'{"old": 1}'},
}


class Mirror(BaseHTTPRequestHandler):
    """The paths of the hub that `snapshot_download` asks for, with one public and one gated repository."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.server.asked.append((self.command, "/".join(path)))
        if path[:2] == ["api", "models"] and path[2:4] == ["some", "model"]:
            commit = COMMITS.get(path[5], path[5]) if path[4:5] in (["revision"], ["tree"]) else "a" * 40
            if commit not in FILES:
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            names = [{"rfilename": name} for name in FILES[commit]]
            fields = {"id": "some/model", "sha": commit, "siblings": names, "private": False, "gated": False}
            if path[4:5] == ["tree"]:
                fields = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                          for name, data in FILES[commit].items()]  # fmt: skip
            return self._send(200, json.dumps(fields).encode(), {"Content-Type": "application/json"})
        if path[:2] == ["some", "model"] and path[2:3] == ["resolve"]:
            data = FILES.get(COMMITS.get(path[3], path[3]), {}).get("/".join(path[4:]))
            if data is not None:
                commit = COMMITS.get(path[3], path[3])
                return self._send(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit})
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if "gated" in path:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send(self, status, data, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def mirror():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.daemon_threads, server.asked = True, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import json, sys
from mgie_jax.weights.hub import fetch
from mgie_jax.weights.tensors import ModelDirError
for source, revision, patterns in json.loads(sys.argv[1]):
    try:
        path = fetch(source, revision, patterns)
        files = {p.relative_to(path).as_posix(): p.read_text() for p in sorted(path.rglob("*")) if p.is_file()}
        print(json.dumps([str(path), files]))
    except ModelDirError as error:
        print(json.dumps(str(error)))
"""


def ask(questions, cache, endpoint, **env):
    """`fetch` of each (source, revision, patterns), in a process of its own: the library reads its settings once."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    kept = {key: value for key, value in kept.items() if "proxy" not in key.lower()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(questions)], capture_output=True, text=True, timeout=120,
        env=kept | {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"} | env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_local_path_is_itself(tmp_path):
    (tmp_path / "mllm.pt").write_bytes(b"")
    assert fetch(tmp_path) == tmp_path and fetch(str(tmp_path / "mllm.pt")) == tmp_path / "mllm.pt"
    with pytest.raises(ModelDirError, match="is a path, which has no revision 'main'"):
        fetch(tmp_path, revision="main")


@pytest.mark.parametrize("source", ["/no/such/folder", "./no", "no", "a/b/c", ""])
def test_what_is_neither_path_nor_name_is_refused(source):
    with pytest.raises(ModelDirError, match=f"'{source}' is missing; give a path, or a repository of the hub"):
        fetch(source)


def test_a_repository_of_the_hub(mirror, tmp_path):
    endpoint = f"http://127.0.0.1:{mirror.server_address[1]}"
    new, pinned, some, lost, none, gated = ask(
        [("some/model", None, None), ("some/model", "old", None), ("some/model", "a" * 40, ["unet/*.json"]),
         ("some/model", "v9", None), ("some/other", None, None), ("some/gated", None, None)], tmp_path, endpoint,
    )  # fmt: skip
    assert new[1] == {name: data.decode() for name, data in FILES["a" * 40].items()}
    assert Path(new[0]).is_relative_to(tmp_path), "it is in the cache"
    assert pinned[1] == {"unet/config.json": '{"old": 1}'} and pinned[0].endswith("b" * 40)
    assert some[1]["unet/config.json"] == '{"new": 1}'
    assert "some/model has no revision 'v9'" in lost
    assert "neither a path nor a repository" in none and "accept its terms" in gated

    before = len(mirror.asked)
    again, unknown, unseen = ask(
        [("some/model", None, None), ("some/unseen", None, None), ("some/model", "v9", None)], tmp_path, endpoint,
        HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert again == new
    assert "some/unseen is not in the cache" in unknown and "some/model@v9 is not in the cache" in unseen
    assert len(mirror.asked) == before, "offline, nobody is asked"


def test_only_what_is_asked_for_is_fetched(mirror, tmp_path):
    endpoint = f"http://127.0.0.1:{mirror.server_address[1]}"
    ((path, files),) = ask([("some/model", None, ["unet/*.json"])], tmp_path, endpoint)
    assert set(files) == {"unet/config.json"}


def test_a_server_that_is_away_is_told(tmp_path):
    (answer,) = ask([("some/model", None, None)], tmp_path, "http://127.0.0.1:9")
    assert "some/model is not in the cache, and the hub cannot be reached" in answer


def test_no_default_names_the_vanished_repository():
    package = Path(mgie_jax.__file__).parent
    roots = [package, *(package.parent / name for name in ("configs", "launch") if (package.parent / name).is_dir())]
    for path in (path for root in roots for path in root.rglob("*") if path.suffix in (".py", ".json", ".sh")):
        assert "runwayml/" not in path.read_text(errors="replace"), path

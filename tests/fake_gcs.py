"""A Google Cloud Storage in this process, for tests: buckets in memory behind the JSON API that gcsfs, TensorStore's
`gcs` driver, ArrayRecord and google-cloud-storage speak. Real enough that these clients, as they are, cannot tell.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

TIME = "2026-01-01T00:00:00.000Z"


@dataclass
class Stored:
    """One object: its bytes, and the number that tells it from what had its name before."""

    data: bytes
    generation: int


@dataclass
class FakeGCS:
    """What is stored, as {"bucket/name": Stored}; `url` is where it is served.

    Attributes:
      requests: (method, path, Range header or "") of all that came in.
      refuse: set to a predicate of (method, path) to have such requests answered with 403.
    """

    objects: dict[str, Stored] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""
    refuse: object = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    generations: itertools.count = field(default_factory=lambda: itertools.count(1))
    uploads: dict[str, tuple[str, bytearray]] = field(default_factory=dict)

    def put(self, name: str, data: bytes) -> Stored:
        with self.lock:
            self.objects[name] = Stored(bytes(data), next(self.generations))
            return self.objects[name]

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def environment(self) -> dict[str, str]:
        """Environment variables that send every client here, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs, google-cloud-storage
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask the real service what kind of bucket this is
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,  # ArrayRecord
            "no_proxy": "*",
        }


@contextmanager
def serve():
    """A `FakeGCS` that answers until the block ends."""
    store = FakeGCS()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that need no more of an answer hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # else every answer waits 40 ms for an acknowledgement
    store: FakeGCS

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = self._body()
        query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        with self.store.lock:
            self.store.requests.append((self.command, self.path, self.headers.get("Range", "")))
        if self.store.refuse and self.store.refuse(self.command, unquote(url.path)):
            return self._json(403, {"error": {"code": 403, "message": "no permission"}})
        path = re.sub(r"^/(?:(upload|download)/)?storage/v1", r"/\1", url.path).replace("//", "/")
        if path.startswith("/upload/"):
            bucket = path.split("/")[3]
            return self._upload(unquote(bucket), query, body)
        parts = [unquote(part) for part in path.removeprefix("/download").strip("/").split("/")]
        if parts[0] != "b":
            return self._json(404, {"error": {"code": 404, "message": f"no such method {path}"}})
        bucket = parts[1]
        if len(parts) == 2:
            return self._json(200, {"kind": "storage#bucket", "name": bucket, "id": bucket, "timeCreated": TIME})
        if len(parts) == 3:
            return self._list(bucket, query)
        if len(parts) > 5:
            return self._move(f"{bucket}/{parts[3]}", parts[4:], bucket)
        return self._object(bucket, parts[3], query)

    def _object(self, bucket: str, name: str, query: dict) -> None:
        with self.store.lock:
            found = self.store.objects.get(f"{bucket}/{name}")
            stale = found and query.get("generation", str(found.generation)) != str(found.generation)
            if found is not None and self.command == "DELETE":
                del self.store.objects[f"{bucket}/{name}"]
        if found is None or stale:
            return self._missing()
        if self.command == "DELETE":
            return self._send(204, b"")
        if query.get("ifGenerationNotMatch") == str(found.generation):
            return self._send(304, b"")
        if query.get("alt") != "media":
            return self._json(200, _resource(bucket, name, found))
        data, headers = found.data, {"x-goog-generation": str(found.generation)}
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last, size = asked[1], asked[2], len(data)
            start = int(first) if first else max(0, size - int(last))
            stop = min(size, int(last) + 1) if first and last else size
            if start >= size:
                return self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            return self._send(206, data[start:stop], headers)
        return self._send(200, data, headers)

    def _move(self, source: str, to: list[str], bucket: str) -> None:
        """`moveTo/o/NAME` within the bucket, and `rewriteTo/b/BUCKET/o/NAME`, which copies."""
        found = self.store.objects.get(source)
        if found is None:
            return self._missing()
        if to[0] == "rewriteTo":
            bucket = to[2]
        made = self.store.put(f"{bucket}/{to[-1]}", found.data)
        resource = _resource(bucket, to[-1], made)
        if to[0] == "rewriteTo":
            return self._json(200, {"done": True, "resource": resource})
        del self.store.objects[source]
        self._json(200, resource)

    def _list(self, bucket: str, query: dict) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, folders = [], set()
        with self.store.lock:
            there = sorted(self.store.objects.items())
        for path, stored in there:
            where, _, name = path.partition("/")
            if where != bucket or not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if query.get("endOffset") and name >= query["endOffset"]:
                continue
            if delimiter and delimiter in name[len(prefix) :]:
                folders.add(prefix + name[len(prefix) :].split(delimiter)[0] + delimiter)
            else:
                items.append(_resource(bucket, name, stored))
        self._json(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def _upload(self, bucket: str, query: dict, body: bytes) -> None:
        kind, name = query.get("uploadType"), query.get("name")
        if "upload_id" in query:
            return self._resume(query["upload_id"], body)
        if kind == "resumable":
            name = name or json.loads(body)["name"]
            number = str(next(self.store.generations))
            self.store.uploads[number] = (f"{bucket}/{name}", bytearray())
            where = f"{self.store.url}/upload/storage/v1/b/{quote(bucket)}/o?uploadType=resumable&upload_id={number}"
            return self._send(200, b"", {"Location": where})
        if kind == "multipart":
            name, body = _multipart(self.headers["Content-Type"], body)
        if "ifGenerationMatch" in query:
            there = self.store.objects.get(f"{bucket}/{name}")
            if query["ifGenerationMatch"] != str(there.generation if there else 0):
                return self._json(412, {"error": {"code": 412, "message": "generation does not match"}})
        self._json(200, _resource(bucket, name, self.store.put(f"{bucket}/{name}", body)))

    def _resume(self, number: str, body: bytes) -> None:
        if self.command == "DELETE":
            self.store.uploads.pop(number, None)
            return self._send(499, b"")
        path, data = self.store.uploads[number]
        data += body
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*":
            assert len(body) % 2**18 == 0, "GCS takes parts in multiples of 256 KiB"
            return self._send(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
        if len(data) != int(total):
            return self._send(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
        del self.store.uploads[number]
        bucket, _, name = path.partition("/")
        self._json(200, _resource(bucket, name, self.store.put(path, data)))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _missing(self) -> None:
        self._json(404, {"error": {"code": 404, "message": "No such object"}})

    def _json(self, status: int, answer: dict) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _resource(bucket: str, name: str, stored: Stored) -> dict:
    return {
        "kind": "storage#object", "bucket": bucket, "name": name, "id": f"{bucket}/{name}/{stored.generation}",
        "generation": str(stored.generation), "metageneration": "1", "size": str(len(stored.data)),
        "md5Hash": base64.b64encode(hashlib.md5(stored.data).digest()).decode(), "timeCreated": TIME, "updated": TIME,
        "contentType": "application/octet-stream",
    }  # fmt: skip


def _multipart(content_type: str, body: bytes) -> tuple[str, bytes]:
    """The name and the data of a multipart upload: a part of JSON, a part of bytes."""
    boundary = b"--" + re.search(r'boundary="?([^";]+)"?', content_type)[1].encode()
    _, about, data, _ = body.split(boundary)
    about = re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1]
    data = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[1]
    return json.loads(about)["name"], data[: -2 if data.endswith(b"\r\n") else -1]

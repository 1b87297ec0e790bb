"""A Google Cloud Storage of this machine: what of its JSON API gcsfs, TensorStore, ArrayRecord and Google's own client
use, over objects in memory. As there, an object appears whole, no folder exists, and nothing can be renamed.
"""

import base64
import contextlib
import hashlib
import http.server
import importlib.util
import itertools
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Answer = tuple[int, dict[str, str], bytes]


class Store:
    """Objects by `bucket/name`, each with the number of the write that made it.

    Attributes:
        asked: method and path of every request, for tests that count them.
        refuse: of a method and an object's name, whether the request fails as if permission were missing.
        address: where it is served.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.asked: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], bool] = lambda method, name: False
        self.address = ""
        self.lock = threading.RLock()
        self._writes = itertools.count(1)
        self._uploads: dict[str, tuple[str, str, bytearray]] = {}

    def names(self, folder: str) -> list[str]:
        """Names of the objects in `bucket/folder`, relative to it, sorted."""
        with self.lock:
            return sorted(name[len(folder) + 1 :] for name in self.objects if name.startswith(f"{folder}/"))

    def put(self, name: str, content: bytes) -> None:
        """Puts an object."""
        with self.lock:
            self.objects[name] = (content, next(self._writes))

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> Answer:
        """What the service says to one request."""
        url = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        parts = [urllib.parse.unquote(part) for part in url.path.split("/") if part]
        with self.lock:
            self.asked.append((method, path))
            if parts[0] == "upload":
                return self._upload(method, parts[4], query, headers, body)
            if parts[0] == "download":
                parts = parts[1:]
            bucket, rest = parts[3], parts[4:]
            if not rest:
                return _json({"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "US"})
            if len(rest) == 1:
                return self._list(bucket, query)
            name = f"{bucket}/{rest[1]}"
            if self.refuse(method, name):
                return _error(403, "denied")
            if method == "POST" and rest[2] in ("rewriteTo", "copyTo"):
                return self._copy(name, f"{rest[4]}/{rest[6]}", rest[2])
            if method == "DELETE":
                return self._delete(name, query)
            return self._get(name, query, headers)

    def _get(self, name: str, query: dict[str, str], headers: Any) -> Answer:
        if name not in self.objects:
            return _error(404, "no such object")
        content, generation = self.objects[name]
        if refused := _precondition(generation, query):
            return refused
        if query.get("alt") != "media":
            return _json(_metadata(name, content, generation))
        answered = {"x-goog-generation": str(generation), "x-goog-hash": f"md5={_md5(content)}"}
        wanted = headers.get("Range")
        if not wanted:
            return 200, answered, content
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted).groups()  # type: ignore[union-attr]
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(len(content), int(last) + 1) if first and last else len(content)
        if start >= len(content):
            return _error(416, "no such range")
        answered["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return 206, answered, content[start:stop]

    def _list(self, bucket: str, query: dict[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in sorted(self.objects):
            inner = name.removeprefix(f"{bucket}/")
            if not name.startswith(f"{bucket}/") or not inner.startswith(prefix):
                continue
            if inner < query.get("startOffset", "") or inner >= query.get("endOffset", "\U0010ffff"):
                continue
            tail = inner[len(prefix) :]
            if delimiter and delimiter in tail:
                prefixes.add(prefix + tail.split(delimiter)[0] + delimiter)
            else:
                items.append(_metadata(name, *self.objects[name]))
        return _json({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _delete(self, name: str, query: dict[str, str]) -> Answer:
        if name not in self.objects:
            return _error(404, "no such object")
        if refused := _precondition(self.objects[name][1], query):
            return refused
        del self.objects[name]
        return 204, {}, b""

    def _copy(self, name: str, to: str, how: str) -> Answer:
        if name not in self.objects:
            return _error(404, "no such object")
        self.put(to, self.objects[name][0])
        made = _metadata(to, *self.objects[to])
        return _json(made if how == "copyTo" else {"done": True, "resource": made})

    def _upload(self, method: str, bucket: str, query: dict[str, str], headers: Any, body: bytes) -> Answer:
        if "upload_id" in query:
            return self._go_on(query["upload_id"], headers, body)
        name, content = query.get("name", ""), body
        if query["uploadType"] == "multipart":
            described, content = _parts(headers["Content-Type"], body)
            name = json.loads(described)["name"]
        if query["uploadType"] == "resumable":
            name = name or json.loads(body)["name"]
        if self.refuse("POST", f"{bucket}/{name}"):
            return _error(403, "denied")
        if refused := _precondition(self.objects.get(f"{bucket}/{name}", (b"", 0))[1], query):
            return refused
        if query["uploadType"] == "resumable":
            key = str(len(self._uploads))
            self._uploads[key] = (bucket, name, bytearray())
            place = f"http://{headers['Host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
            return 200, {"Location": place}, b""
        self.put(f"{bucket}/{name}", content)
        return _json(_metadata(f"{bucket}/{name}", *self.objects[f"{bucket}/{name}"]))

    def _go_on(self, key: str, headers: Any, body: bytes) -> Answer:
        bucket, name, held = self._uploads[key]
        held += body
        if headers["Content-Range"].endswith("/*"):
            return 308, {"Range": f"bytes=0-{len(held) - 1}"}, b""
        self.put(f"{bucket}/{name}", bytes(held))
        return _json(_metadata(f"{bucket}/{name}", *self.objects[f"{bucket}/{name}"]))


@contextlib.contextmanager
def serving(store: Store) -> Iterator[str]:
    """Serves a store on a port of this machine meanwhile; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def any_method(self) -> None:
            body = self._body()
            status, headers, content = store.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = any_method

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            whole = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole

        def log_message(self, *words: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *words: Any) -> None:
            """A client that went away is its own business."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def environment(address: str) -> dict[str, str]:
    """What makes each of the clients take this service for the real one."""
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs, Google's client
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # ArrayRecord
        "TENSORSTORE_GCS_HTTP_URL": address,  # Orbax
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",  # TensorStore's
        "GOOGLE_CLOUD_PROJECT": "nothing",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which asks a service of its own what kind a bucket is
        "NO_PROXY": "127.0.0.1",
    }


def use(address: str) -> None:
    """Makes this process, whose clients have not begun yet, take a served store for Google's."""
    import fsspec

    os.environ.update(environment(address))
    fsspec.config.conf.setdefault("gcs", {})["token"] = "anon"


@pytest.fixture(scope="session")
def cloud() -> Iterator[Store]:
    """The store that all tests share, each with a bucket of its own; `gs://` leads there."""
    if importlib.util.find_spec("gcsfs") is None:  # which reads its environment when it is imported
        pytest.skip("gs:// needs gcsfs: pip install 'chopjax[gcs]'")
    store = Store()
    with serving(store) as store.address, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(store.address).items():
            patch.setenv(name, value)
        use(store.address)
        yield store


@pytest.fixture
def bucket(cloud: Store) -> str:
    """The name of a bucket that nobody else uses."""
    return f"bucket-{next(_BUCKETS)}"


_BUCKETS = itertools.count(1)


def _parts(kind: str, body: bytes) -> list[bytes]:
    """The two parts of a multipart upload, without their headers."""
    boundary = re.search(r'boundary="?([^";]+)', kind).group(1).encode()  # type: ignore[union-attr]
    parts = body.split(b"--" + boundary)[1:3]
    return [re.sub(rb"\r?\n\Z", b"", re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]) for part in parts]


def _metadata(name: str, content: bytes, generation: int) -> dict[str, Any]:
    bucket, inner = name.split("/", 1)
    return {
        "kind": "storage#object",
        "id": f"{name}/{generation}",
        "name": inner,
        "bucket": bucket,
        "generation": str(generation),
        "metageneration": "1",
        "size": str(len(content)),
        "md5Hash": _md5(content),
        "updated": "2026-01-01T00:00:00.000Z",
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "storageClass": "STANDARD",
    }


def _precondition(generation: int, query: dict[str, str]) -> Answer | None:
    wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
    if wanted is not None and int(wanted) != generation:
        return _error(412, "another generation")
    if unwanted is not None and int(unwanted) == generation:
        return 304, {}, b""
    return None


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def _json(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _error(status: int, message: str) -> Answer:
    said = {"error": {"code": status, "message": message, "errors": [{"message": message, "reason": "test"}]}}
    return status, {"Content-Type": "application/json"}, json.dumps(said).encode()

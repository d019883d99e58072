"""A store on disk, and its root served over HTTP as a public bucket would be."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.layers.store import Store


class PublicBucket(SimpleHTTPRequestHandler):
    """Serves ``name.gz`` as ``name`` with its encoding, and ranges of plain files."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 20

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, *, body):
        path = Path(self.translate_path(self.path))
        encoded = path.with_name(f"{path.name}.gz")
        is_encoded = encoded.is_file()
        if not is_encoded and not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = (encoded if is_encoded else path).read_bytes()
        wanted = self.headers.get("Range")
        if wanted and not is_encoded:
            first, last = wanted.removeprefix("bytes=").split("-")
            stop = int(last) + 1 if last else len(content)
            total, start = len(content), int(first)
            content = content[start:stop]
            self.send_response(206)
            self.send_header(
                "Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}"
            )
        else:
            self.send_response(200)
        if is_encoded:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "root"))


@pytest.fixture
def served(tmp_path):
    """Address at which the root of `store` is served."""
    handler = functools.partial(PublicBucket, directory=str(tmp_path / "root"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()

"""An API server of Kubernetes for as much as em asks of one, over real HTTP."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Cluster:
    """Keeps objects by path, as the API names them; patches merge."""

    def __init__(self):
        self.objects = {}
        self.requests = []
        self.refuses = None
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one(self):
                split = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                cluster.requests.append((self.command, split.path, body))
                status, answer = cluster.answer(
                    self.command, split.path, parse_qs(split.query), body
                )
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_one

            def log_message(self, *arguments):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def apply(self, manifest, namespace="em"):
        """Keep an object as kubectl apply would."""
        group = manifest["apiVersion"]
        plural = manifest["kind"].lower() + "s"
        start = "api" if group == "v1" else "apis"
        path = f"/{start}/{group}/namespaces/{namespace}/{plural}"
        self.objects[f"{path}/{manifest['metadata']['name']}"] = manifest

    def answer(self, method, path, query, body):
        if self.refuses is not None:
            return self.refuses, {"kind": "Status", "code": self.refuses}
        is_scale = path.endswith("/scale")
        path = path.removesuffix("/scale")
        if method == "POST":
            self.objects[f"{path}/{body['metadata']['name']}"] = body
            return 201, body
        found = self.objects.get(path)
        if found is None and method == "GET" and path.rsplit("/", 1)[1].endswith("s"):
            return 200, self._listed(path, query)
        if found is None:
            return 404, {"kind": "Status", "code": 404, "reason": "NotFound"}
        if method == "DELETE":
            del self.objects[path]
            return 200, {"kind": "Status", "status": "Success"}
        if method == "PATCH":
            _merge(found, body)
        if is_scale:
            return 200, {"kind": "Scale", "spec": {"replicas": found["spec"]["replicas"]}}
        return 200, found

    def _listed(self, path, query):
        wanted = dict(
            part.split("=")
            for part in query.get("labelSelector", [""])[0].split(",")
            if part
        )
        items = [
            o
            for p, o in sorted(self.objects.items())
            if p.rpartition("/")[0] == path
            and wanted.items() <= o["metadata"].get("labels", {}).items()
        ]
        return {"kind": "List", "items": items}


def _merge(target, patch):
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value

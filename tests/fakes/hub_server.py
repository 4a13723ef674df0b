"""A hub of data sets on this machine, honest or not: what `HF_ENDPOINT` can be pointed at."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

REPOSITORY = "someone/statements"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


class FakeHub:
    """What is served, and how it misbehaves."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.mode = "honest"
        """`hang`, `trickle`, `other` commit, `cut` bodies, `changed` bodies under the old hash, or an HTTP status with
        an error code, e.g. `404 RepoNotFound`."""
        self.requests: list[str] = []
        self.released = threading.Event()
        self.url = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        self.close_connection = True
        if hub.mode == "hang":
            hub.released.wait(30)
            return
        if hub.mode[0].isdigit():
            status, code = hub.mode.split()
            return self._send(int(status), b"{}", {"X-Error-Code": code}, with_body)
        if path == f"/api/datasets/{REPOSITORY}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": "0" * 40} for name, body in hub.files.items()
            ]
            return self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, with_body)
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in hub.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        body = hub.files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Repo-Commit": OTHER if hub.mode == "other" else COMMIT,
        }
        if hub.mode == "changed":
            body = body[:-3] + b"?" + body[-2:]
        self._send(200, body, headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if not with_body:
            return
        if self.hub.mode == "cut":
            body = body[: len(body) // 2]
        if self.hub.mode == "trickle":
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.hub.released.wait(0.05):
                    return
            return
        self.wfile.write(body)


@contextmanager
def serve_hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    """Serve these files of REPOSITORY at COMMIT."""
    hub = FakeHub(files)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join(5)

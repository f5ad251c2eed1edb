"""A model hub, and a GitHub of plain files, on loopback: real HTTP, so that the real clients are tested."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40


@contextmanager
def serve(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serves files: those named `owner/repository/file` as the Hub does, all by their plain names as GitHub does.

    Yields:
        The address for `HF_ENDPOINT`, and a list that fills with the requests.
    """
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            requests.append(f"{self.command} {self.path}")
            owner, repository, kind, *names = self.path.lstrip("/").split("/")
            # the Hub has OWNER/REPOSITORY/resolve/REVISION/FILE, GitHub OWNER/REPOSITORY/COMMIT/FILE
            key = "/".join((owner, repository, *names[1:])) if kind == "resolve" else self.path.lstrip("/")
            content = files.get(key)
            self.send_response(200 if content is not None else 404)
            if content is None:
                known = any(name.startswith(f"{owner}/{repository}/") for name in files)
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                content = b""
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""A model hub, and a GitHub of plain files, on loopback: real HTTP, so that the real clients are tested."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


@contextmanager
def serve(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serves files by their plain names as GitHub does, and as the Hub does those that are named
    `owner/repository/file` or `datasets/owner/repository/file`.

    Yields:
        The address for `HF_ENDPOINT`, and a list that fills with the requests.
    """
    requests: list[str] = []

    def describe(path: str) -> bytes | None:
        """What the Hub's interface says of a dataset repository, and of the files in it."""
        _, _, owner, name, what, *_ = path.split("/")
        repository = f"{owner}/{name}"
        names = [name.split("/", 3)[3] for name in files if name.startswith(f"datasets/{repository}/")]
        if not names:
            return None
        if what == "revision":
            return json.dumps(
                {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            ).encode()
        contents = {name: files[f"datasets/{repository}/{name}"] for name in names}
        return json.dumps(
            [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in contents.items()
            ]
        ).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            requests.append(f"{self.command} {self.path}")
            path = unquote(urlsplit(self.path).path).lstrip("/")
            listing = describe(path) if path.startswith("api/") else None
            name = re.sub(r"/resolve/[^/]+/", "/", path)
            # GitHub has OWNER/REPOSITORY/COMMIT/FILE, the Hub OWNER/REPOSITORY/resolve/REVISION/FILE
            content = listing if listing is not None else files.get(name)
            self.send_response(200 if content is not None else 404)
            if content is None:
                known = any(each.startswith("/".join(name.split("/")[:2]) + "/") for each in files)
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

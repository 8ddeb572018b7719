"""A local HTTP server in place of the servers that scripts/downloads.sh downloads from."""

import contextlib
import io
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> content) with byte ranges.

    `cut`: path -> number of replies that break off in the middle. `stalled`: paths whose replies stop in the middle
    without closing the connection. `requests`: the (path, Range header) pairs received.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: Counter[str] = Counter()
        self.stalled: set[str] = set()
        self.supports_ranges = True
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, byte_range = self.server, self.headers.get("Range")
        server.requests.append((self.path, byte_range))
        if self.path not in server.files:
            return self.answer(404, b"<!DOCTYPE html>")
        body = server.files[self.path]
        if not (byte_range and server.supports_ranges):
            return self.answer(200, body)
        start = int(byte_range.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            return self.answer(416, b"", f"bytes */{len(body)}")
        return self.answer(206, body[start:], f"bytes {start}-{len(body) - 1}/{len(body)}")

    def answer(self, status: int, body: bytes, content_range: str | None = None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        stalled = self.path in self.server.stalled
        if stalled or self.server.cut[self.path]:
            self.server.cut[self.path] -= not stalled
            body = body[: len(body) // 2]
        self.wfile.write(body)
        if stalled:
            self.wfile.flush()
            self.rfile.read(1)  # returns when the client closes the connection

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def archive(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """Return a tar.bz2 archive with files (name -> content) and symbolic links (name -> target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as tar:
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name, body in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return buffer.getvalue()

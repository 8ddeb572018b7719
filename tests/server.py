"""A server on this machine that stands for those that scripts/downloads.sh fetches from."""

import contextlib
import io
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WEB_PAGE = b"\n<!DOCTYPE html>\n<html><body>This link is no longer available.</body></html>\n"


class Server(ThreadingHTTPServer):
    """Serves `files` (path: bytes) with byte ranges, and misbehaves as told.

    `cut`: path -> how many of its replies still break off in the middle. `refusals`: path -> statuses to answer first.
    `requests`: the (path, Range header) pairs asked for.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: Counter[str] = Counter()
        self.refusals: dict[str, list[int]] = {}
        self.knows_ranges = True
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if server.refusals.get(self.path):
            return self.answer(server.refusals[self.path].pop(0), WEB_PAGE)
        if self.path not in server.files:
            return self.answer(404, WEB_PAGE)
        body = server.files[self.path]
        if not (wanted and server.knows_ranges):
            return self.answer(200, body)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            return self.answer(416, b"", f"bytes */{len(body)}")
        return self.answer(206, body[start:], f"bytes {start}-{len(body) - 1}/{len(body)}")

    def answer(self, status: int, body: bytes, content_range: str | None = None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.server.cut[self.path]:
            self.server.cut[self.path] -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def archive(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
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

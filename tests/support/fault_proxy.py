"""An HTTP proxy on loopback that misbehaves as networks and busy stores do, the same each time.

What befalls a request depends on the seed, the request, and how often it came before, not on the
order in which clients ask.
"""

import hashlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

STALL_S = 2.0
WRITES = ("PUT", "POST", "DELETE")
SHARES = {
    # Half of these reach the server and only their answer is lost: a repeat must be harmless.
    "500": 0.05,
    "500 afterwards": 0.05,
    "reset": 0.02,
    "reset afterwards": 0.02,
    "truncated": 0.04,
    "stall": 0.03,
}
"""Share of the requests that each kind of fault befalls."""

_ERROR = (
    b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>injected</Message></Error>"
)


class FaultProxy:
    """Where it listens, and what it has done."""

    def __init__(self, upstream: str, seed: int) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.seed = seed
        self.endpoint = ""
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        """By method."""
        self.dies_after: int | None = None
        """Requests after which every connection is reset, as of a dead server; None: never. Nothing
        else befalls a request where it is set."""
        self.counted = WRITES
        """The methods of those requests."""
        self._asked: Counter[str] = Counter()
        self._turn = threading.Lock()

    def fault(self, method: str, path: str, length: str) -> str:
        """What befalls the next such request; "" for nothing."""
        # Upload ids differ from run to run.
        stable = f"{method} {path.split('uploadId=')[0]} {length}"
        with self._turn:
            self.requests[method] += 1
            if self.dies_after is not None:
                counted = sum(self.requests[m] for m in self.counted)
                return "reset" if counted > self.dies_after else ""
            self._asked[stable] += 1
            text = f"{self.seed} {stable} {self._asked[stable]}"
        draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        for kind, share in SHARES.items():
            draw -= share
            if draw < 0:
                with self._turn:
                    self.faults[kind] += 1
                return kind
        return ""


@contextmanager
def fault_proxy(upstream: str, seed: int) -> Iterator[FaultProxy]:
    """Runs a proxy in front of an HTTP server, whose URL is `upstream`."""
    proxy = FaultProxy(upstream, seed)

    class Handler(_Handler):
        state = proxy

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FaultProxy

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        kind = self.state.fault(self.command, self.path, self.headers.get("Range", str(length)))
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(length)
        if kind == "stall":
            time.sleep(STALL_S)
        if kind == "500":
            return self._answer(500, [], _ERROR)
        if kind == "reset":
            return self._reset()
        status, headers, data = self._forward(body)
        if kind == "500 afterwards":
            return self._answer(500, [], _ERROR)
        if kind == "reset afterwards":
            return self._reset()
        self._answer(status, headers, data, truncated=kind == "truncated")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        # With the client's own Host, which its signature covers.
        upstream = http.client.HTTPConnection(self.state.upstream, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        upstream.endheaders(body)
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        return response.status, response.getheaders(), data

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, truncated: bool = False
    ) -> None:
        self.send_response_only(status)
        has_length = False
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding"):
                has_length |= name.lower() == "content-length"
                self.send_header(name, value)
        if not has_length:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            data = b""
        self.wfile.write(data[: len(data) // 2] if truncated else data)
        self.wfile.flush()
        if truncated:
            self.close_connection = True

    def _reset(self) -> None:
        # Lingering for 0 s makes the kernel send RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:  # The connection was reset on purpose, or by the client.
            pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        """Nothing: pytest has enough to show."""

"""Who may call, how much a call may send, and what a browser may do with the answers.

ASGI middleware around the application, without state but the bytes that wait.
"""

import hmac
import math
import os
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipeline.errors import UserError
from pipeline.inference.served_limits import MAX_WAITING_MIB, Limits

KEY = "LSEG_API_KEY"
"""The variable that holds the key; it is never logged."""
_MIN_KEY = 16

LOOPBACK = ("127.0.0.1", "localhost", "::1")

OPEN = ("/", "/healthz", "/docs", "/openapi.json")
"""What needs no key, besides the files of the page."""
OPEN_BELOW = ("/page/",)

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""The browser itself forbids the page every request to elsewhere."""


def api_key(host: str) -> str:
    """The key that callers must send; empty where only this machine can call and none is set.

    Raises:
        UserError: There is none, and others can call; or it is too short to keep anybody out.
    """
    key = os.environ.get(KEY, "")
    if not key and host not in LOOPBACK:
        raise UserError(
            f"host={host}: others can reach it, so {KEY} must hold a key that callers send: set "
            "it to a long random text, or leave host at 127.0.0.1"
        )
    if key and (len(key) < _MIN_KEY or not key.isascii() or not key.isprintable() or " " in key):
        raise UserError(
            f"{KEY}: must be at least {_MIN_KEY} letters and digits: take those of "
            '`python -c "import secrets; print(secrets.token_urlsafe(24))"`'
        )
    return key


def refusal(status: int, message: str, **headers: str) -> Response:
    """An answer that says what is wrong."""
    content = {"error": {"status": status, "message": message}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(content, status, named)


class Gate:
    """Lets pass who may call, and gives every answer the headers that keep a page at home.

    Args:
        app: The application.
        key: What callers must send as `Authorization: Bearer KEY` or `X-API-Key: KEY`; empty: no
            key, and then only pages of this machine may call.
    """

    def __init__(self, app: Any, key: str = "") -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                added = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in added if pair[0] not in there),
                ]
            await send(message)

        answer = self._refused(Request(scope))
        await (answer or self._app)(scope, receive, send_with_headers)

    def _refused(self, request: Request) -> Response | None:
        path = request.url.path
        if self._key:
            if path in OPEN or path.startswith(OPEN_BELOW):
                return None
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                given = request.headers.get("x-api-key", "")
            if hmac.compare_digest(given.strip().encode(), self._key.encode()):
                return None
            message = "the API key is missing or wrong: send it as Authorization: Bearer KEY"
            return refusal(401, message, WWW_Authenticate="Bearer")
        # A page of elsewhere, open in a browser here, must not call in its user's name; nor may a
        # name of elsewhere that leads here.
        host = request.headers.get("host", "")
        if _name(f"//{host}") not in LOOPBACK:
            return refusal(403, f"only this machine may call, by 127.0.0.1, until {KEY} is set")
        origin = request.headers.get("origin")
        if origin is not None and _netloc(origin) != host:
            return refusal(403, "pages of elsewhere may not call")
        return None


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


class BodyTooLarge(Exception):
    """A body is larger than a call may be."""


class BodiesWait(Exception):
    """The bodies of all calls together are too large at this moment."""


class BodyReader:
    """Reads bodies up to a size, and up to another one all together."""

    def __init__(self, limits: Limits) -> None:
        self.most = math.ceil(limits.max_image_mib * 2**20 * 4 / 3) + 2**20
        """Bytes of one body: base64 takes four thirds."""
        self._waiting = 0

    async def read(self, request: Request) -> bytes:
        """Reads a body.

        Raises:
            BodyTooLarge: It is larger than a call may be.
            BodiesWait: Too many are here already.
        """
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said[:15]) > self.most:
            raise BodyTooLarge
        parts, size = [], 0
        try:
            async for part in request.stream():
                size += len(part)
                self._waiting += len(part)
                if size > self.most:
                    raise BodyTooLarge
                if self._waiting > MAX_WAITING_MIB * 2**20:
                    raise BodiesWait
                parts.append(part)
            return b"".join(parts)
        finally:
            # What was read is bounded by the number of calls from here on.
            self._waiting -= size

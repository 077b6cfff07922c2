"""The application over HTTP: routes, and what becomes of mistakes.

It knows no Ray: what answers a call is a `Backend`, the engine of this process or replicas.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from python_multipart.exceptions import MultipartParseError
from starlette.applications import Starlette
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from model.errors import ModelError
from pipeline.errors import UserError, printable
from pipeline.inference.served_limits import Limits, TooLarge
from pipeline.serving.calls import (
    Answer,
    Away,
    Busy,
    Call,
    Kind,
    TooLate,
    call_from_form,
    call_from_json,
)
from pipeline.serving.config import MAX_LABELS
from pipeline.serving.gate import BodiesWait, BodyReader, BodyTooLarge, Gate, refusal
from pipeline.serving.openapi import described, documentation
from pipeline.serving.tally import TALLY

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page")
_MAX_MESSAGE_CHARS = 1000
_RETRY_S = "1"
_AWAY = "no replica answers: try again later; the service's log says why"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


class Backend(Protocol):
    """What answers calls."""

    async def ask(self, call: Call) -> Answer:
        """Answers a call; raises Away, Busy, TooLate or UserError."""
        ...

    async def about(self) -> dict[str, Any]:
        """Says `model`, its `labels`, whether it `is_behind` its alias, and the calls `waiting`.

        Raises:
            Away: Nothing answers.
        """
        ...


@dataclass(frozen=True)
class Example:
    """An image to try, and words for it."""

    name: str
    data: bytes
    media_type: str
    words: tuple[str, ...] = ()


def build_app(
    backend: Backend, limits: Limits, key: str = "", examples: Sequence[Example] = ()
) -> Starlette:
    """Makes the application.

    Args:
        backend: What answers.
        limits: What one call may cost, by the backend.
        key: The API key; empty: none.
        examples: Images that the page offers.
    """
    service = _Service(backend, limits, examples)
    routes = [
        Route("/", service.file("index.html")),
        Route("/page/{name}", service.page),
        Route("/examples", service.examples),
        Route("/examples/{number:int}", service.example),
        Route("/v1/segment", service.call("segment"), methods=["POST"]),
        Route("/v1/embed", service.call("embed"), methods=["POST"]),
        Route("/v1/labels", service.labels),
        Route("/healthz", service.health),
        Route("/metrics", service.metrics),
        Route("/openapi.json", service.openapi),
        Route("/docs", service.docs),
    ]
    handlers = {HTTPException: _http_error, Exception: _defect}
    return Starlette(
        routes=routes,
        middleware=[Middleware(Gate, key=key)],
        exception_handlers=handlers,  # type: ignore[arg-type]
    )


class _Service:
    """The routes."""

    def __init__(self, backend: Backend, limits: Limits, examples: Sequence[Example]) -> None:
        self._backend, self._limits, self._examples = backend, limits, examples
        self._bodies = BodyReader(limits)

    def file(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        """The route of one file of the page."""
        path = PAGE / name
        content = path.read_bytes()

        async def answer(request: Request) -> Response:
            return Response(content, media_type=_KINDS[path.suffix])

        return answer

    async def page(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ("page.css", "page.js", "canvas.js", "words.js"):
            raise HTTPException(404)
        return await self.file(name)(request)

    async def examples(self, request: Request) -> Response:
        listed = [{"name": each.name, "words": each.words} for each in self._examples]
        return JSONResponse(listed)

    async def example(self, request: Request) -> Response:
        number = request.path_params["number"]
        if not number < len(self._examples):
            raise HTTPException(404)
        example = self._examples[number]
        return Response(example.data, media_type=example.media_type)

    def call(self, kind: Kind) -> Callable[[Request], Awaitable[Response]]:
        """The route of one kind of call."""

        async def answer(request: Request) -> Response:
            response = await self._answer(kind, request)
            TALLY.add("calls", status=str(response.status_code))
            return response

        return answer

    async def _answer(self, kind: Kind, request: Request) -> Response:
        try:
            call = await asyncio.wait_for(self._read(kind, request), self._limits.seconds)
            answer = await self._backend.ask(call)
        except (Busy, BodiesWait):
            message = "the service is busy: too many calls wait: try again later"
            return refusal(429, message, Retry_After=_RETRY_S)
        except (TooLate, TimeoutError):
            message = f"the call took longer than {self._limits.seconds:g} s and was ended: "
            message += "send a smaller image, fewer labels, or a cheaper view; or try again later"
            return refusal(503, message, Retry_After=_RETRY_S)
        except Away:
            return refusal(503, _AWAY, Retry_After=_RETRY_S)
        except BodyTooLarge:
            most = f"{self._limits.max_image_mib:g} MiB"
            return refusal(413, f"image: must be at most {most}: shrink it", Connection="close")
        except TooLarge as error:
            return refusal(413, str(error))
        except (UserError, ModelError) as error:
            return refusal(400, printable(str(error))[:_MAX_MESSAGE_CHARS])
        except ClientDisconnect:
            return Response(status_code=499)
        except HTTPException:
            raise
        except Exception:
            logger.exception("a call failed")
            return refusal(500, "the call failed; the service's log says why")
        headers = {"LSeg-Model": _header(answer.model), **answer.headers}
        return Response(answer.body, media_type=answer.media_type, headers=headers)

    async def _read(self, kind: Kind, request: Request) -> Call:
        media_type, _, _ = request.headers.get("content-type", "").partition(";")
        media_type = media_type.strip().lower()
        if media_type not in ("multipart/form-data", "application/json"):
            raise HTTPException(
                415, "Content-Type: must be multipart/form-data or application/json: see /docs"
            )
        body = await self._bodies.read(request)
        if media_type == "application/json":
            return call_from_json(kind, body)
        return call_from_form(kind, await _form(request.headers, body))

    async def labels(self, request: Request) -> Response:
        about = await self._about()
        limits = {
            name: getattr(self._limits, name)
            for name in ("max_image_mib", "max_image_mpx", "max_labels", "max_label_chars")
        }
        return JSONResponse({**about, "limits": limits})

    async def health(self, request: Request) -> Response:
        about = await self._about()
        return JSONResponse({"status": "ok", "model": about["model"]})

    async def metrics(self, request: Request) -> Response:
        try:
            about = await self._backend.about()
        except Away:
            about = None  # What was counted is there all the same.
        return PlainTextResponse(TALLY.text(about))

    async def _about(self) -> dict[str, Any]:
        try:
            return await self._backend.about()
        except Away:
            raise HTTPException(503, _AWAY, {"Retry-After": _RETRY_S}) from None

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(described(self._limits))

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(documentation(self._limits))


async def _form(headers: Headers, body: bytes) -> list[tuple[str, str | bytes]]:
    """The fields of a form; the sizes are bounded by that of the body."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    parser = MultiPartParser(
        headers, whole(), max_files=2, max_fields=MAX_LABELS + 10, max_part_size=len(body) + 1
    )
    # In memory, where the body is already: no file of a caller's on the disk.
    parser.spool_max_size = len(body) + 1
    try:
        form = await parser.parse()
    except (MultiPartException, MultipartParseError, KeyError, UnicodeDecodeError) as error:
        said = getattr(error, "message", "") or "is damaged"
        raise UserError(f"the form: {printable(said)[:200]}: correct it") from None
    return [
        (name, await value.read() if isinstance(value, UploadFile) else value)
        for name, value in form.multi_items()
    ]


def _header(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text)


async def _http_error(request: Request, error: HTTPException) -> Response:
    return refusal(error.status_code, error.detail, **(error.headers or {}))


async def _defect(request: Request, error: Exception) -> Response:
    return refusal(500, "the call failed; the service's log says why")

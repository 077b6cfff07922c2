"""The service in one process, without Ray: the page on this machine."""

import socket
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from pipeline.errors import UserError
from pipeline.serving.app import Example, build_app
from pipeline.serving.calls import Answer, Call
from pipeline.serving.champion import Champion
from pipeline.serving.config import ServiceConfig
from pipeline.serving.engine import Engine
from pipeline.serving.limits import limits_of


class LocalBackend:
    """Answers calls with an engine of this process."""

    def __init__(self, champion: Champion, engine: Engine) -> None:
        self._champion, self._engine = champion, engine

    async def ask(self, call: Call) -> Answer:
        """Answers a call."""
        return await self._engine.ask(call)

    async def about(self) -> dict[str, Any]:
        """Says which model answers."""
        return about(self._champion, self._engine)


def about(champion: Champion, engine: Engine) -> dict[str, Any]:
    """Says which model answers, its labels, whether its alias leads elsewhere, and what waits."""
    loaded = champion.current
    return {
        "model": loaded.name,
        "labels": list(loaded.network.labels),
        "is_behind": champion.is_behind,
        "waiting": engine.waiting,
    }


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 takes any that is free.

    Raises:
        UserError: The address is taken, or none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(128)
        except OSError:
            bound.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(
            f"host={host}, port={port}: cannot be listened at ({reason}): end what uses it, or "
            "give another --port"
        ) from None
    return bound


def serve_here(
    champion: Champion,
    config: ServiceConfig,
    bound: socket.socket,
    key: str,
    examples: Sequence[Example],
    say: Callable[[], None],
) -> None:
    """Serves until the process is asked to end; calls that have begun are answered.

    Args:
        champion: The model.
        config: Its limits.
        bound: Where to listen.
        key: The API key; empty: none.
        examples: Images that the page offers.
        say: Called when calls are answered.
    """
    engine = Engine(lambda: champion.current, config.max_waiting, config.max_batch)
    app = build_app(LocalBackend(champion, engine), limits_of(config), key, examples)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=30,
        limit_concurrency=256,
    )
    server = _Server(settings, say)
    try:
        server.run(sockets=[bound])
    finally:
        champion.close()
        engine.close()


class _Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config, say: Callable[[], None]) -> None:
        super().__init__(config)
        self._say = say

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._say()

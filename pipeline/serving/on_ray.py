"""The service on Ray Serve: one process takes calls, replicas answer them, each with a network.

`Ingress` knows HTTP and nothing of networks; `Network` is an engine, which batches what waits for
it. Serve gives a call to the replica with the fewest, and where all have enough and the queue is
full, the caller gets status 429. Each replica follows the alias by itself, so that for some seconds
two models may answer; each answer names its own.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import BackPressureError
from ray.serve.schema import LoggingConfig

from model.errors import ModelError
from pipeline.checkpoints.resolvers import worker_runtime_env
from pipeline.errors import UserError, did_you_mean
from pipeline.inference.served_limits import TooLarge
from pipeline.serving.app import Example, build_app
from pipeline.serving.calls import Answer, Busy, Call, TooLate
from pipeline.serving.champion import Champion
from pipeline.serving.config import ServeConfig
from pipeline.serving.engine import Engine
from pipeline.serving.gate import api_key
from pipeline.serving.limits import limits_of
from pipeline.serving.local import about

APP = "lseg"
NETWORK = "Network"
_CALLS_OF_INGRESS = 512
_ABOUT_S = 5.0
_REFUSALS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (UserError, TooLarge, Busy, TooLate)
}
_LOGS = LoggingConfig(log_level="WARNING", enable_access_log=False)


class Network:
    """A replica: the network, and the engine that asks it."""

    def __init__(self, config: ServeConfig) -> None:
        logging.getLogger("pipeline").setLevel(logging.INFO)
        self._champion = Champion(
            config.checkpoint, config.device, limits_of(config), config.follow_s
        )
        self._engine = Engine(
            lambda: self._champion.current, calls_of_replica(config), config.max_batch
        )

    async def ask(self, call: Call) -> Answer | tuple[str, str]:
        """Answers a call, or names the refusal: Ray would put tracebacks into its message."""
        try:
            return await self._engine.ask(call)
        except (UserError, Busy, TooLate) as error:
            return type(error).__name__, str(error)
        except ModelError as error:
            return UserError.__name__, str(error)

    async def about(self) -> dict[str, Any]:
        """Says which model answers."""
        return about(self._champion, self._engine)

    def check_health(self) -> None:
        """Makes Serve replace a replica whose thread is gone."""
        if not self._engine.is_alive:
            raise RuntimeError("the thread of the network has ended")


class RayBackend:
    """Answers calls by replicas."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._about: dict[str, Any] | None = None

    async def ask(self, call: Call) -> Answer:
        """Answers a call."""
        try:
            found = await self._network.ask.remote(call)
        except BackPressureError:
            raise Busy from None
        if isinstance(found, Answer):
            return found
        kind, message = found
        raise _REFUSALS.get(kind, UserError)(message)

    async def about(self) -> dict[str, Any]:
        """Says which model a replica answers with; where all are busy, what was said before."""
        try:
            found = await asyncio.wait_for(self._network.about.remote(), _ABOUT_S)
        except (BackPressureError, TimeoutError):
            if self._about is None:
                raise Busy from None
            return self._about
        self._about = found
        return found


def calls_of_replica(config: ServeConfig) -> int:
    """Calls that a replica holds at once: those in the network, and those that go next."""
    return min(config.max_waiting, max(2, 2 * config.max_batch))


def application(config: ServeConfig, host: str, examples: Sequence[Example] = ()) -> Any:
    """The application, to be run by `serve.run`.

    Args:
        config: The model and its limits.
        host: Where the proxies listen; for any but this machine, LSEG_API_KEY must be set where
            the application runs.
        examples: Images that the page offers.
    """
    api_key(host)
    held = calls_of_replica(config)

    def build() -> Any:
        app = serve.get_replica_context().app_name
        backend = RayBackend(serve.get_deployment_handle(NETWORK, app))
        return build_app(backend, limits_of(config), api_key(host), examples)

    network = serve.deployment(
        name=NETWORK,
        num_replicas=config.replicas,
        max_ongoing_requests=held,
        max_queued_requests=max(1, config.max_waiting - held),
        graceful_shutdown_timeout_s=config.max_call_s + 10,
        ray_actor_options={
            "num_cpus": config.cpus,
            "num_gpus": config.gpus,
            "runtime_env": worker_runtime_env(config.checkpoint) or {},
        },
        logging_config=_LOGS,
    )(Network)
    ingress = serve.deployment(
        name="Ingress",
        max_ongoing_requests=_CALLS_OF_INGRESS,
        graceful_shutdown_timeout_s=config.max_call_s + 10,
        ray_actor_options={"num_cpus": 0},
        logging_config=_LOGS,
    )(serve.ingress(build)())
    return ingress.bind(network.bind(config))


def on_cluster(settings: dict[str, Any]) -> Any:
    """The application of a RayService, whose `args` are settings of `jobs/serve.py`.

    Raises:
        UserError: A setting does not exist, or is wrong.
    """
    known = [field.name for field in fields(ServeConfig) if field.name not in ("host", "port")]
    for name in settings:
        if name not in known:
            raise UserError(
                f"args.{name}: no such setting: there are {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )
    # Proxies of a cluster are there for others.
    return application(ServeConfig(**settings), "0.0.0.0")


def run_here(config: ServeConfig, examples: Sequence[Example] = ()) -> None:
    """Starts the application on the Ray of this process, and returns when it answers.

    Raises:
        UserError: A replica cannot start: the checkpoint cannot be loaded there.
    """
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(
            host=config.host, port=config.port, request_timeout_s=math.ceil(config.max_call_s) + 30
        ),
        logging_config=_LOGS,
    )
    app = application(config, config.host, examples)
    try:
        serve.run(app, name=APP, route_prefix="/", logging_config=_LOGS)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint={config.checkpoint}: no replica came up: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None


def stop() -> None:
    """Ends the application: calls that have begun are answered first."""
    serve.delete(APP)
    serve.shutdown()

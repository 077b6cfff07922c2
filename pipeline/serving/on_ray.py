"""The service on Ray Serve: one process takes calls, replicas answer them, each with a network.

`Ingress` knows HTTP and nothing of networks; `Network` is an engine, which batches what waits for
it. Serve gives a call to the replica with the fewest, and where all have enough and the queue is
full, the caller gets status 429. Each replica follows the alias by itself, so that for some seconds
two models may answer; each answer names its own.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.schema import LoggingConfig

from model.errors import ModelError
from pipeline.checkpoints.resolvers import worker_runtime_env
from pipeline.errors import UserError, did_you_mean, printable
from pipeline.inference.served_limits import TooLarge
from pipeline.serving.app import Example, build_app
from pipeline.serving.calls import Answer, Away, Busy, Call, TooLate
from pipeline.serving.champion import Champion
from pipeline.serving.config import ServeConfig, address
from pipeline.serving.engine import Engine
from pipeline.serving.gate import LOOPBACK, api_key
from pipeline.serving.limits import limits_of
from pipeline.serving.local import about

logger = logging.getLogger(__name__)

APP = "lseg"
NETWORK = "Network"
_CALLS_OF_INGRESS = 512
_ABOUT_S = 5.0
_REFUSALS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (UserError, TooLarge, Busy, TooLate)
}
_GONE = (RayActorError, DeploymentUnavailableError)
"""What is raised where a replica died, or where all of them cannot start."""
_HEAD = "node:__internal_head__"
"""The resource that Ray gives its head node alone."""
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
    """Answers calls by replicas.

    Args:
        network: The handle of the replicas.
        seconds: Time of a call, that in the queue before the replicas included.
    """

    def __init__(self, network: Any, seconds: float) -> None:
        self._network, self._seconds = network, seconds
        self._about: dict[str, Any] | None = None
        self._heard = -math.inf
        """When a replica said anything last."""

    async def ask(self, call: Call) -> Answer:
        """Answers a call."""
        try:
            found = await asyncio.wait_for(self._asked(call), self._seconds)
        except TimeoutError:
            raise TooLate from None
        self._heard = time.monotonic()
        if isinstance(found, Answer):
            return found
        kind, message = found
        raise _REFUSALS.get(kind, UserError)(message)

    async def _asked(self, call: Call) -> Answer | tuple[str, str]:
        try:
            try:
                return await self._network.ask.remote(call)
            except RayActorError:
                # Its replica died; a call changes nothing, so that another one may answer it.
                return await self._network.ask.remote(call)
        except BackPressureError:
            raise Busy from None
        except _GONE as error:
            logger.warning("a call had no replica: %s", printable(str(error))[:300])
            raise Away from None

    async def about(self) -> dict[str, Any]:
        """Says which model a replica answers with.

        Where all are busy, what was said before; a replica that is there has answered some call
        within a call's time.
        """
        try:
            found = await asyncio.wait_for(self._network.about.remote(), _ABOUT_S)
        except (BackPressureError, TimeoutError):
            if self._about is None or time.monotonic() - self._heard > self._seconds:
                raise Away from None
            return self._about
        except _GONE:
            raise Away from None
        self._heard = time.monotonic()
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
        limits = limits_of(config)
        backend = RayBackend(serve.get_deployment_handle(NETWORK, app), limits.seconds)
        return build_app(backend, limits, api_key(host), examples)

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


def run_here(config: ServeConfig, examples: Sequence[Example] = ()) -> str:
    """Starts the application on the Ray of this process.

    Returns:
        Where it answers.

    Raises:
        UserError: Serve runs there already, with an address and applications of somebody else; or
            a replica cannot start: the checkpoint cannot be loaded there.
    """
    _check_alone()
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(
            host=config.host, port=config.port, request_timeout_s=math.ceil(config.max_call_s) + 30
        ),
        logging_config=_LOGS,
    )
    try:
        serve.run(
            application(config, config.host, examples),
            name=APP,
            route_prefix="/",
            logging_config=_LOGS,
        )
    except RuntimeError as error:
        raise UserError(
            f"checkpoint={config.checkpoint}: no replica came up: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None
    return place_of(config, ray.nodes(), ray.get_runtime_context().get_node_id())


def place_of(config: ServeConfig, nodes: Sequence[dict[str, Any]], own_id: str) -> str:
    """Where the proxy of the head node answers, as seen from here.

    Args:
        config: The address to listen at.
        nodes: The nodes as `ray.nodes()` lists them.
        own_id: The node of this process.
    """
    head = next((each for each in nodes if _HEAD in each["Resources"]), None)
    if head is None or head["NodeID"] == own_id:
        return address(config.host, config.port)
    if config.host in LOOPBACK:
        return f"{address(config.host, config.port)} of the head node {head['NodeManagerAddress']}"
    return address(head["NodeManagerAddress"], config.port)


def stop() -> None:
    """Ends the application, and Serve unless others use it by now.

    Calls that have begun are answered first.
    """
    serve.delete(APP)
    if not serve.status().applications:
        serve.shutdown()


def _check_alone() -> None:
    """Refuses a cluster on which Serve runs: its address was chosen before, and stays.

    Raises:
        UserError: Serve runs.
    """
    there = serve.status()
    if there.proxies or there.applications:
        names = ", ".join(sorted(there.applications)) or "none"
        raise UserError(
            f"ray.serve: runs on this cluster already (applications: {names}), at an address that "
            "cannot be changed: end it (serve shutdown), or take another cluster"
        )

"""Every private or undocumented name of Ray, torch and MLflow that this project uses.

Each stands here once, with the reason why no public one will do. `tests/pipeline/
test_ray_internals.py` uses every one of them for real, and so fails at an upgrade that removes or
changes it; `pyproject.toml` bounds the versions to those that the tests have seen. The libraries
are imported inside the functions, because jobs start without them.
"""

import importlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""File in a run's folder in which Ray Train notes the complete checkpoints, and resumes from. There
is no public way to ask for the newest one without starting workers, nor to repair a torn file."""

SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that `ray job submit` sets for the driver, with the id that it printed. The runtime
context knows only the other id, which the Jobs page of the dashboard does not show."""

CLEANER_LOGGER = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
"""Logger that warns each second where a local Ray has no dashboard; no option switches that off."""

TRAIN_WORKER_TITLE = "ray::RayTrainWorker"
"""How the title of the process of a training worker begins. Ray says which actors run on a node
only to a driver, which takes seconds to start: a node that is taken away may have ten."""

SAVED_VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of an experiment's tags in which MLflow's UI keeps saved views; the client has no call."""


def guard_scoring_server(
    guard: Callable[[Callable[..., Any]], Callable[..., Any]], around: Callable[[Any], Any]
) -> None:
    """Puts guards around the server of MLflow that serves a model, and what it does with a request.

    It reads and parses each body before any code of a model, answers with tracebacks, and has no
    setting for either. Guards that stand there already, marked by their attribute `guards`, are
    replaced.

    Args:
        guard: Makes the function that handles a request from MLflow's.
        around: Makes an ASGI application from MLflow's.
    """
    from mlflow.pyfunc import scoring_server

    server: Any = scoring_server
    plain = getattr(server.invocations, "guards", server.invocations)
    server.invocations = guard(plain)
    make = getattr(server.init, "guards", server.init)

    def init(model: Any) -> Any:
        app = make(model)
        app.add_middleware(around)
        return app

    init.guards = make  # type: ignore[attr-defined]
    server.init = init


def guard_snapshots(guard: Callable[[Callable[[], None]], None]) -> None:
    """Puts a guard around the write of `SNAPSHOT`, in the process of Ray Train's controller.

    An error there ends the run, whatever `max_failures` is, and nothing public tries it again. The
    guard gets the write as a call; one that stands there already is replaced.
    """
    name = "ray.train.v2._internal.execution.checkpoint.checkpoint_manager"
    manager: Any = importlib.import_module(name).CheckpointManager
    write = manager._write_state_to_storage
    plain = getattr(write, "guards", write)

    def guarded(self: Any) -> None:
        guard(lambda: plain(self))

    guarded.guards = plain  # type: ignore[attr-defined]
    manager._write_state_to_storage = guarded


def new_snapshot(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Makes the content of `SNAPSHOT`, as if Ray Train had noted these checkpoints.

    Args:
        metrics: The metrics of each by the name of its folder, oldest first; at least one.
    """
    import ray

    results = [{"checkpoint_dir_name": n, "metrics": dict(m)} for n, m in metrics.items()]
    empty = (
        "pending_training_results pending_validation_specs validated_checkpoint_dir_names "
        "timed_out_validation_checkpoint_dir_names failed_validation_checkpoint_dir_names"
    )
    state: dict[str, Any] = {"ray_version": ray.__version__, "checkpoint_results": results}
    state |= {"checkpoint_report_indices": list(range(len(results)))}
    state |= {"latest_checkpoint_result": results[-1], "current_report_index": len(results)}
    return json.dumps(state | {key: [] for key in empty.split()})


def worker_loggers() -> list[logging.Logger]:
    """The loggers that print the traceback of each error of a training worker.

    Also of those that the driver prints in one line; the names of the loggers differ in kind.
    """
    names = ("ray.train.v2._internal.util", "ray.train.v2._internal.execution.context")
    return [importlib.import_module(name).logger for name in names]


def raise_at_once(is_final: Callable[[BaseException], bool]) -> None:
    """Lets errors of workers end a run at once, in the process of Ray Train's controller.

    Ray starts the workers anew after any error, `max_failures` times.

    Args:
        is_final: Whether another attempt would meet the error of a worker again.
    """
    name = "ray.train.v2._internal.execution.failure_handling.default"
    policy: Any = importlib.import_module(name).DefaultFailurePolicy
    plain = getattr(policy._is_retryable_error, "guards", policy._is_retryable_error)

    def is_retryable(self: Any, error: Any) -> bool:
        failures = getattr(error, "worker_failures", None) or {}
        return not any(map(is_final, failures.values())) and plain(self, error)

    is_retryable.guards = plain  # type: ignore[attr-defined]
    policy._is_retryable_error = is_retryable


def read_environment_again() -> None:
    """Lets Ray see the token and the mode of authentication that the environment now holds.

    It reads them once, when it is imported, and the jobs import it before they know that they
    start one.
    """
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def keep_back_lines(parts: Sequence[str]) -> None:
    """Keeps lines of Ray's processes that have one of these parts from being printed here.

    Ray prints all that its processes write, and each of its own messages has another switch, if
    any. Called again, it replaces the parts of the call before.
    """
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    name = "ray_print_logs"
    for plain in [handler for each, handler in dispatcher.handlers if each == name]:
        print_batch = getattr(plain, "guards", plain)

        def print_some(batch: dict[str, Any], print_batch: Any = print_batch) -> None:
            lines = batch.get("lines", [])
            kept = [line for line in lines if not any(part in line for part in parts)]
            if kept or not lines:
                print_batch(batch | {"lines": kept})

        print_some.guards = print_batch  # type: ignore[attr-defined]
        dispatcher.remove_handler(name)
        dispatcher.add_handler(name, print_some)


def say_nothing_of_shutdowns() -> None:
    """Keeps back a warning, with traceback, of Ray Train's controller after each crash of a worker.

    It says itself that it is expected, and no option switches it off.
    """
    name = "ray.train.v2._internal.callbacks.backend_setup"
    importlib.import_module(name).logger.setLevel(logging.ERROR)


def tell_late_answers_in_one_line() -> None:
    """Leaves the traceback out of two warnings of Ray Train's controller on an overloaded machine.

    They say themselves that they may be ignored, and their calls are tried again.
    """
    policies = "ray.train.v2._internal.execution.scaling_policy"
    for name in ("autoscaling_coordinator_client", "elastic"):
        importlib.import_module(f"{policies}.{name}").logger.addFilter(_in_one_line)


def _in_one_line(record: logging.LogRecord) -> bool:
    """A filter that keeps every record, and turns a warning's traceback into the error's text."""
    if record.levelno == logging.WARNING and record.exc_info:
        error = record.exc_info[1]
        record.msg = f"{record.getMessage()} ({type(error).__name__}: {error})"
        record.args = record.exc_info = record.exc_text = None
    return True


def start_counter(counter: Any, tags: Mapping[str, str]) -> None:
    """Makes a `ray.util.metrics.Counter` show 0.

    Its public call takes no 0, and without one Prometheus does not see the first increase.
    """
    counter._record(0.0, dict(tags))


def export_interval_s() -> float:
    """Returns the seconds from one look of Ray at the metrics of this process to the next.

    Ray names it nowhere in public; `RAY_metrics_report_interval_ms` sets it, and Ray takes less
    than a second for one.
    """
    config: Any = importlib.import_module("ray")._config
    return max(1.0, config.metrics_report_interval_ms() / 1000)


def raylet_options(words: list[str]) -> dict[str, str]:
    """Returns the options in the command line of a node's raylet, without their dashes.

    Only a driver can ask which node it is on, and what is the address of its cluster.
    """
    pairs = (word.lstrip("-").partition("=") for word in words if word.startswith("--"))
    return {name: value for name, _, value in pairs if value}


def announce_end_of_node(address: str, node_id: str, message: str, remaining_s: float) -> None:
    """Announces to a cluster that a node is about to go, as `ray drain-node` does.

    That hidden command, the only other way, takes several seconds, of the few that a node may have.

    Args:
        address: Address of the cluster's GCS, `HOST:PORT`.
        node_id: The node, in hexadecimal digits.
        message: Why.
        remaining_s: Seconds until the node is gone.

    Raises:
        OSError: Nothing answers there.
        RuntimeError: Ray refuses.
    """
    # Ray's own client would try for minutes to reach a head that has gone.
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    raylet: Any = importlib.import_module("ray._raylet")
    protobuf: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    reason = protobuf.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + remaining_s) * 1000)
    is_accepted, why = raylet.GcsClient(address=address).drain_node(
        node_id, reason, message, deadline_ms
    )
    if not is_accepted:
        raise RuntimeError(f"node {node_id}: Ray does not let it go: {why}")


def limit_waiting_blocks(context: Any, most: int) -> None:
    """Bounds how many finished blocks of one task wait for their consumer.

    Args:
        context: A `ray.data.DataContext`. Its public settings bound bytes, of all tasks together.
        most: Number of blocks.
    """
    context._max_num_blocks_in_streaming_gen_buffer = most


def limit_source(context: Any, most: int, look_every_s: float) -> None:
    """Bounds what a dataset's reader makes ahead, and how often Ray Data looks at its tasks.

    Ray Data bounds bytes, which a reader of numbers never reaches: it would make those of the whole
    run in the first minutes. Its policies of backpressure may refuse such output, but where the
    operator behind is short of memory, a guard lets some through at each look. And a look costs
    milliseconds and comes without a pause while there is nothing but output that is not wanted: a
    core for each stream, as long as the training is slower than its loaders. So a reader that is
    far enough ahead is not looked at, and looks have a distance.

    Args:
        context: A `ray.data.DataContext`, whose policies of backpressure are listed by class.
        most: Number of blocks that may wait for the operator behind the reader.
        look_every_s: Shortest time between two looks.
    """
    from ray.data._internal.execution import backpressure_policy as policies
    from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer

    class SourceAhead(policies.BackpressurePolicy):
        def __init__(self, context: Any, topology: Any, resources: Any) -> None:
            super().__init__(context, topology, resources)
            for op in topology:
                if any(isinstance(each, InputDataBuffer) for each in op.input_dependencies):
                    self._watch(op, [topology[below] for below in op.output_dependencies])

        def _watch(self, op: Any, below: list[Any]) -> None:
            tasks_of, cancel, looked = op.get_active_tasks, op._cancel_active_tasks, 0.0

            def tasks() -> list[Any]:
                nonlocal looked
                time.sleep(max(0.0, looked + look_every_s - time.monotonic()))
                looked = time.monotonic()
                waiting = sum(state.total_enqueued_input_blocks() for state in below)
                return [] if waiting >= most else tasks_of()

            def cancel_all(force: bool) -> None:
                op.get_active_tasks = tasks_of
                cancel(force)

            op.get_active_tasks, op._cancel_active_tasks = tasks, cancel_all

    enabled = [*policies.ENABLED_BACKPRESSURE_POLICIES, SourceAhead]
    context.set_config(policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, enabled)


def split_on_node(dataset: Any, count: int, node: str) -> list[Any]:
    """Splits a dataset among `count` consumers, block by block in turn, by a coordinator on `node`.

    `Dataset.streaming_split`, which this repeats, puts the coordinator (the process that executes
    the dataset, of some 250 MiB) on the node that calls it: that of all streams on the head.

    Args:
        dataset: A `ray.data.Dataset`.
        count: Number of consumers.
        node: Id of the Ray node.
    """
    from ray.data import Dataset
    from ray.data._internal.iterator import stream_split_iterator as splits
    from ray.data._internal.logical.interfaces import LogicalPlan
    from ray.data._internal.logical.operators import StreamingSplit

    dag = [dataset._logical_plan.dag]
    split = StreamingSplit(num_splits=count, equal=False, input_dependencies=dag)
    divided = Dataset._from_parent(dataset, LogicalPlan(split, dataset.context))
    divided._set_uuid(dataset._get_uuid())
    coordinator = splits.SplitCoordinator.options(
        max_concurrency=count + 1,  # All consumers may wait at once, and one call shuts it down.
        label_selector={"ray.io/node-id": node},
    ).remote(divided, count, None)
    return [splits.StreamSplitDataIterator(coordinator, at, count) for at in range(count)]


def shut_down_together(first: Any, others: list[Any]) -> None:
    """Lets Ray Train, which shuts down the coordinator of worker 0's iterator, shut down all.

    The loaders of the other streams would hold their CPUs until the next workers have started, for
    which these may be needed.

    Args:
        first: The iterator of worker 0.
        others: An iterator of each other stream.
    """
    first._coord_actor = Coordinators(first._coord_actor, [each._coord_actor for each in others])


class Coordinators:
    """The coordinator of one stream, which passes on to those of others that they shut down."""

    def __init__(self, own: Any, others: list[Any]) -> None:
        self.own, self.others = own, others

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("own", "others"):  # Asked for while it is unpickled.
            raise AttributeError(name)
        return getattr(self.own, name)

    @property
    def shutdown_executor(self) -> Any:
        """What Ray Train calls `.remote()` of."""
        return _ShutDown([self.own, *self.others])


class _ShutDown:
    def __init__(self, coordinators: list[Any]) -> None:
        self._coordinators = coordinators

    def remote(self) -> Any:
        """Waits for all for a few seconds: some may have gone with their nodes."""
        import ray

        calls = [each.shutdown_executor.remote() for each in self._coordinators]
        ray.wait(calls, num_returns=len(calls), timeout=5)
        return ray.put(None)


def cause_of(error: BaseException) -> BaseException:
    """Returns the error of a worker without the wrapping of Ray Train or of Ray's tasks.

    `TrainingFailedError.worker_failures` is public, but not how its values wrap the worker's error,
    which may itself be one of Ray's tasks, such as a loader's.
    """
    inner = getattr(error, "_base_exc", None) or getattr(error, "cause", None)
    return cause_of(inner) if isinstance(inner, BaseException) else error


def never_lived(error: BaseException) -> bool:
    """Says whether an actor's death is that of its constructor, for which Ray has no type.

    A process that dies again and again lacks memory; one that never lived has a defect.
    """
    return "creation task" in str(error)


class RunStorage:
    """The storage of the current Ray Train run, as Ray itself writes checkpoints to it.

    `ray.train.report` uploads through it, but neither tries again nor stores anything that is not a
    checkpoint of the run, as the best model is not.
    """

    def __init__(self) -> None:
        import ray.train

        self._storage: Any = ray.train.get_context().get_storage()

    def upload(self, local: Any, name: str) -> Any:
        """Copies a local `ray.train.Checkpoint` to the folder `name`; returns the stored one."""
        return self._storage.persist_current_checkpoint(local, name)

    def delete(self, name: str) -> None:
        """Deletes the folder `name` of the run."""
        path = self._storage.build_checkpoint_path_from_name(name)
        self._storage.storage_filesystem.delete_dir(path)


def set_current_rates(schedule: Any, rates: list[Any]) -> None:
    """Makes a torch schedule report `rates` as the current ones, which `load_state_dict` restores.

    The public way to refresh them is a step of the schedule, which would also count.
    """
    schedule._last_lr = rates


def leave_to_others(module: Any, names: list[str]) -> None:
    """Makes DistributedDataParallel leave parameters of a module alone, whose gradients come later.

    Its forward pass does not use them. The backward pass of the images would wait for their
    gradients, and a static graph has no way to say that there will be none.

    Args:
        module: The module that will be wrapped.
        names: Names of the parameters in it.
    """
    from torch.nn.parallel import DistributedDataParallel

    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def batch_norms(module: Any) -> Iterator[Any]:
    """Yields the batch norms of a torch module, of any dimension; their base class is private."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return (child for child in module.modules() if isinstance(child, _BatchNorm))


def copy_tensors(targets: list[Any], sources: list[Any]) -> None:
    """Copies tensors into others in one kernel launch, where public calls need one for each."""
    import torch

    torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]


def fake_tensors() -> Any:
    """Makes a mode in which torch computes shapes alone, and tensors take no memory.

    The public meta device knows no autocast, which the training step uses.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def gpu_library() -> Any:
    """Returns NVIDIA's Python module for its driver, which Ray brings along for its own dashboard.

    The public distribution of it (`nvidia-ml-py`) would be one more for every installation.
    """
    return importlib.import_module("ray._private.thirdparty.pynvml")


def artifact_repository(uri: str) -> Any:
    """Opens an MLflow artifact URI of any kind, for `list_artifacts` and `download_artifacts`.

    The public `mlflow.artifacts` takes whole URIs, and those of runs and models cannot be joined
    with the paths that it lists.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri)

"""Each private name of Ray, torch and MLflow does what the code expects of it.

A failure after an upgrade means that the name in `pipeline.ray_internals` is gone or has another
meaning: see there what it is for, then adapt it, and the upper bound in pyproject.toml.
"""

import importlib
import json
import logging
import os
import pickle
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
import ray
import ray.data
import ray.train
import torch
from packaging.requirements import Requirement
from ray._private import ray_logging
from ray._private.ray_logging import WorkerStandardStreamDispatcher
from ray.data._internal.iterator.stream_split_iterator import StreamSplitDataIterator
from ray.data.block import BlockMetadata
from ray.train.v2._internal.data_integration.dataset_manager import DatasetManager
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.context import TrainContext
from ray.train.v2._internal.execution.storage import StorageContext
from ray.util.metrics import Counter
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pipeline import ray_internals
from pipeline.ray_internals import Coordinators

ROOT = Path(__file__).parents[2]


def test_importing_it_loads_none_of_the_libraries():
    code = "import sys, pipeline.ray_internals; print({'ray', 'torch', 'mlflow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize("library", ["ray", "torch", "mlflow"])
def test_the_bounds_hold_and_stop_at_the_version_that_the_tests_saw(library):
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {r.name: r.specifier for r in map(Requirement, content["project"]["dependencies"])}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)[library]
    major, minor, *_ = map(int, pinned.split("+")[0].split("."))
    assert wanted[library].contains(pinned)
    assert not wanted[library].contains(f"{major}.{minor + 1}.0")
    assert wanted[library].contains(metadata.version(library).split("+")[0])


def test_the_snapshot_is_the_file_that_ray_train_writes():
    store = StorageContext(storage_path="/tmp", experiment_dir_name="run")
    assert store.checkpoint_manager_snapshot_path == f"/tmp/run/{ray_internals.SNAPSHOT}"


def test_a_guard_stands_around_the_write_of_the_snapshot(tmp_path, monkeypatch):
    from ray.train.v2._internal.execution.checkpoint import checkpoint_manager as module

    manager = module.CheckpointManager
    monkeypatch.setattr(manager, "_write_state_to_storage", manager._write_state_to_storage)
    monkeypatch.setattr(manager, "_save_state", lambda _: "{}")
    told: list[str] = []
    for name in ("replaced", "first"):
        ray_internals.guard_snapshots(lambda write, name=name: (told.append(name), write()))
    one = object.__new__(manager)
    one._storage_context = StorageContext(str(tmp_path), "run")
    one._write_state_to_storage()
    assert told == ["first"]
    assert (tmp_path / "run" / ray_internals.SNAPSHOT).read_text() == "{}"


def test_ray_reads_a_snapshot_that_is_made_for_it(tmp_path):
    from ray.train.v2._internal.execution.checkpoint import checkpoint_manager as module

    for step in (2, 4):
        (tmp_path / f"run/step_{step}").mkdir(parents=True)
    made = ray_internals.new_snapshot({f"step_{step}": {"step": step} for step in (2, 4)})
    (tmp_path / "run" / ray_internals.SNAPSHOT).write_text(made)
    config = ray.train.CheckpointConfig(num_to_keep=2)
    manager = module.CheckpointManager(config, StorageContext(str(tmp_path), "run"))
    latest = manager.latest_checkpoint_result
    assert latest
    assert latest.checkpoint.path == str(tmp_path / "run/step_4")
    assert latest.metrics == {"step": 4}
    assert [each.metrics["step"] for each in manager._checkpoint_results] == [2, 4]
    assert json.loads(manager._save_state()) == json.loads(made) | {
        key: [{"version": 0} | each for each in json.loads(made)[key]]
        for key in ("checkpoint_results",)
    } | {"latest_checkpoint_result": {"version": 0} | json.loads(made)["latest_checkpoint_result"]}


def test_ray_writes_the_snapshot_with_the_keys_that_are_read():
    from ray.train.v2._internal.execution.checkpoint import checkpoint_manager as manager

    fields = manager._CheckpointManagerState.__annotations__
    assert {"checkpoint_results", "latest_checkpoint_result"} <= set(fields)
    assert "checkpoint_dir_name" in manager._TrainingResultState.__annotations__


def test_submitted_jobs_are_known_by_the_variable_that_ray_reads():
    from ray._private.runtime_env import constants

    assert constants.RAY_JOB_CONFIG_JSON_ENV_VAR == ray_internals.SUBMITTED_JOB
    from ray.dashboard.modules.job import common

    assert common.JOB_ID_METADATA_KEY == "job_submission_id"


def test_the_logger_of_the_cleaner_is_that_of_its_module():
    module = importlib.import_module(ray_internals.CLEANER_LOGGER)
    assert isinstance(module.logger, logging.Logger)
    assert module.logger.name == ray_internals.CLEANER_LOGGER


def test_the_ui_of_mlflow_reads_saved_views_of_this_tag():
    import mlflow

    built = Path(mlflow.__file__).parent / "server/js/build/static/js"
    assert any(ray_internals.SAVED_VIEW_TAG in path.read_text() for path in built.glob("*.js"))


def test_an_actor_that_never_lived_is_known_from_one_that_died(local_ray):
    @ray.remote
    class Actor:
        def __init__(self, fails: bool) -> None:
            assert not fails

        def die(self) -> None:
            os._exit(1)

    for fails in (True, False):
        actor = Actor.remote(fails)
        with pytest.raises(ray.exceptions.RayActorError) as caught:
            ray.get(actor.die.remote())
        assert ray_internals.never_lived(caught.value) is fails


def test_lines_that_say_nothing_are_kept_back(monkeypatch):
    dispatcher, printed = WorkerStandardStreamDispatcher(), []
    monkeypatch.setattr(ray_logging, "global_worker_stdstream_dispatcher", dispatcher)
    ray_internals.keep_back_lines(["nothing"])  # Ray prints no lines here.
    assert dispatcher.handlers == []
    dispatcher.add_handler("ray_print_logs", lambda batch: printed.append(batch["lines"]))
    for part in ("other", "says nothing"):  # The second replaces the first.
        ray_internals.keep_back_lines([part])
    for lines in (["a", "says nothing at all", "b"], ["it says nothing"], ["other"]):
        dispatcher.emit({"pid": 1, "lines": lines})
    assert printed == [["a", "b"], ["other"]]


def test_ray_prints_lines_of_workers_by_the_handler_of_this_name():
    import inspect

    from ray._private import worker

    assert '"ray_print_logs"' in inspect.getsource(worker.connect)


def test_the_warning_after_a_crash_is_of_this_logger():
    from ray.train.v2._internal.callbacks import backend_setup

    level = backend_setup.logger.level
    try:
        ray_internals.say_nothing_of_shutdowns()
        assert not backend_setup.logger.isEnabledFor(logging.WARNING)
        assert backend_setup.logger.isEnabledFor(logging.ERROR)
    finally:
        backend_setup.logger.setLevel(level)


@pytest.mark.parametrize("module", ["autoscaling_coordinator_client", "elastic"])
def test_a_late_answer_is_told_without_a_traceback(module, caplog, monkeypatch):
    policies = "ray.train.v2._internal.execution.scaling_policy"
    # Both modules tell it by `logger.warning(text, exc_info=True)`, as this test does.
    logger = importlib.import_module(f"{policies}.{module}").logger
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logger, "propagate", True)
    ray_internals.tell_late_answers_in_one_line()
    ray_internals.tell_late_answers_in_one_line()
    assert len(logger.filters) == 1
    try:
        raise ray.exceptions.GetTimeoutError("Get timed out: 100 % of it")
    except ray.exceptions.GetTimeoutError:
        logger.warning("Failed to ask for 100 % of it.", exc_info=True)
    (record,) = (record for record in caplog.records if record.name == logger.name)
    assert caplog.text.count("Failed to ask for 100 % of it.") == 1
    assert "(GetTimeoutError: Get timed out: 100 % of it)" in record.getMessage()
    assert "Traceback" not in caplog.text


def test_a_counter_takes_a_zero():
    counter, taken = Counter("lseg_test_of_zero_total", tag_keys=("run",)), []
    counter._metric = SimpleNamespace(record=lambda value, tags: taken.append((value, tags)))
    ray_internals.start_counter(counter, {"run": "mine"})
    assert taken == [(0.0, {"run": "mine"})]


def test_the_interval_of_metrics_is_the_one_that_ray_documents():
    """In a process of its own: Ray reads its variables once."""
    code = "from pipeline.ray_internals import export_interval_s; print(export_interval_s())"
    for given, interval_s in (("10000", 10.0), ("3000", 3.0), ("10", 1.0)):
        env = {**os.environ, "RAY_metrics_report_interval_ms": given}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.stdout == f"{interval_s}\n", done.stderr


def test_waiting_blocks_have_a_bound_that_ray_data_knows():
    context = ray.data.DataContext()
    before = dict(vars(context))
    ray_internals.limit_waiting_blocks(context, 3)
    # No new attribute: it is one that Ray has, and reads.
    assert [v for k, v in vars(context).items() if v is not before[k]] == [3]


def test_a_source_makes_no_more_than_is_used(local_ray, tmp_path):
    made = tmp_path / "made"

    class Numbers(ray.data.Datasource):
        def estimate_inmemory_data_size(self) -> int:
            return 8

        def get_read_tasks(self, parallelism: int, *_, **__) -> list[ray.data.ReadTask]:
            def numbers():
                for number in range(100_000):
                    with made.open("ab") as file:
                        file.write(b".")
                    yield pyarrow.table({"number": [number]})

            metadata = BlockMetadata(100_000, 800_000, None, None)
            return [ray.data.ReadTask(numbers, metadata)]

    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1
    ray_internals.limit_waiting_blocks(context, 4)
    ray_internals.limit_source(context, 4, 0.01)
    with ray.data.DataContext.current(context):
        numbers = ray.data.read_datasource(Numbers(), override_num_blocks=1, num_cpus=0)

    # By value, as the source: for its name Ray's processes would import all of this file.
    def slowly(block: dict) -> dict:
        time.sleep(0.1)
        return block

    (part,) = ray_internals.split_on_node(
        numbers.map_batches(slowly, batch_size=None, compute=ray.data.TaskPoolStrategy(size=1)),
        1,
        ray.get_runtime_context().get_node_id(),
    )
    blocks = iter(part.iter_batches(batch_size=None, prefetch_batches=0))
    taken = [int(next(blocks)["number"][0]) for _ in range(10)]
    assert taken == list(range(10))
    assert made.stat().st_size < 40  # One byte for each.


def test_ray_train_shuts_down_the_streams_of_all_nodes(local_ray):
    here = ray.get_runtime_context().get_node_id()
    streams = [ray_internals.split_on_node(ray.data.range(3), 1, here)[0] for _ in range(3)]
    coordinators = [each._coord_actor for each in streams]
    manager = DatasetManager({}, ray.train.DataConfig(), None, 1, [here])
    ray_internals.shut_down_together(streams[0], streams[1:])
    for each in streams:  # Started, and not finished.
        assert next(iter(each.iter_batches(batch_size=1)))
    # Whatever happens to the object on its way to the worker: it is still an iterator of its own.
    pickle.loads(pickle.dumps(Coordinators(1, [2])))
    assert isinstance(streams[0], StreamSplitDataIterator)
    manager._coordinator_actors.append(streams[0]._coord_actor)
    ray.kill(coordinators[1])  # As with its node.
    manager.shutdown_data_executors()
    for coordinator in (coordinators[0], coordinators[2]):
        assert ray.get(coordinator._is_executor_shutdown.remote())


def test_the_cause_of_a_wrapped_error_is_found(local_ray):
    inner = ValueError("mine")
    assert ray_internals.cause_of(UserExceptionWithTraceback(inner, "")) is inner
    assert ray_internals.cause_of(inner) is inner

    @ray.remote
    def fails() -> None:
        raise KeyError("there")

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fails.remote())
    assert isinstance(ray_internals.cause_of(caught.value), KeyError)
    both = UserExceptionWithTraceback(caught.value, "")
    assert type(ray_internals.cause_of(both)) is KeyError


def test_the_storage_of_a_run_takes_and_deletes_folders(tmp_path, monkeypatch):
    store = StorageContext(storage_path=str(tmp_path / "store"), experiment_dir_name="run")
    (tmp_path / "local").mkdir()
    (tmp_path / "local/file").write_text("x")
    assert hasattr(TrainContext, "get_storage")
    context = type("Context", (), {"get_storage": lambda self: store})()
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    storage = ray_internals.RunStorage()
    stored = storage.upload(ray.train.Checkpoint(str(tmp_path / "local")), "step_1")
    assert Path(stored.path, "file").read_text() == "x"
    storage.delete("step_1")
    assert not Path(stored.path).exists()


def test_a_schedule_reports_the_rates_that_were_set():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    ray_internals.set_current_rates(schedule, [0.5])
    assert schedule.get_last_lr() == [0.5]
    assert schedule.last_epoch == 0


def test_parameters_can_be_left_to_others_than_ddp(tmp_path):
    class Half(torch.nn.Module):
        """Of two layers its forward pass uses one."""

        def __init__(self) -> None:
            super().__init__()
            self.used, self.later = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    def two_passes(module: torch.nn.Module) -> None:
        network = DistributedDataParallel(module)
        for _ in range(2):
            network(torch.ones(1, 2)).sum().backward()

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        left, waited_for = Half(), Half()
        ray_internals.leave_to_others(left, ["later.weight", "later.bias"])
        two_passes(left)
        assert left.used.weight.grad is not None
        with pytest.raises(RuntimeError, match="finished reduction in the prior iteration"):
            two_passes(waited_for)
    finally:
        dist.destroy_process_group()


def test_batch_norms_of_every_kind_are_found():
    norms = [torch.nn.BatchNorm1d(2), torch.nn.BatchNorm2d(2), torch.nn.SyncBatchNorm(2)]
    module = torch.nn.Sequential(*norms, torch.nn.LayerNorm(2), torch.nn.Conv2d(2, 2, 1))
    assert [*ray_internals.batch_norms(module)] == norms


def test_tensors_are_copied_in_place():
    targets = [torch.zeros(2), torch.zeros(3, dtype=torch.int64)]
    ray_internals.copy_tensors(targets, [torch.ones(2), torch.arange(3)])
    assert targets[0].tolist() == [1, 1]
    assert targets[1].tolist() == [0, 1, 2]


def test_fake_tensors_have_shapes_and_take_no_memory():
    with ray_internals.fake_tensors(), torch.autocast("cpu", torch.bfloat16):
        product = torch.empty(10**6, 10**6) @ torch.empty(10**6, 10)
    assert (product.shape, product.dtype) == ((10**6, 10), torch.bfloat16)


def test_artifacts_of_a_uri_are_listed_and_downloaded(tmp_path):
    (tmp_path / "there/below").mkdir(parents=True)
    (tmp_path / "there/below/file.json").write_text(json.dumps(1))
    repository = ray_internals.artifact_repository((tmp_path / "there").as_uri())
    assert [(info.path, info.is_dir) for info in repository.list_artifacts(None)] == [
        ("below", True)
    ]
    (tmp_path / "to").mkdir()
    fetched = repository.download_artifacts("below/file.json", str(tmp_path / "to"))
    assert Path(fetched).read_text() == "1"


def test_requests_to_the_scoring_server_go_through_the_guard(monkeypatch):
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    plain = scoring_server.invocations
    monkeypatch.setattr(scoring_server, "invocations", plain)
    monkeypatch.setattr(scoring_server, "init", scoring_server.init)
    seen, around = [], []

    def guard_of(name):
        def guard(invocations):
            assert invocations is plain  # Not the guard before.

            def answer(data, content_type, model, input_schema):
                seen.append((name, data, content_type))
                return scoring_server.InvocationsResponse("{}", 200, "application/json")

            answer.guards = invocations
            return answer

        return guard

    class Model:
        class metadata:
            get_input_schema = staticmethod(lambda: None)

    def around_of(name):
        def wrap(app):
            around.append(name)
            return app

        return wrap

    for name in ("first", "second"):
        ray_internals.guard_scoring_server(guard_of(name), around_of(name))
        client = TestClient(scoring_server.init(Model()))
        client.post("/invocations", content=b"x", headers={"content-type": "text/csv"})
    assert seen == [("first", b"x", "text/csv"), ("second", b"x", "text/csv")]
    assert around == ["first", "second"]  # Once in each server.


def test_ray_sees_a_token_that_is_set_after_its_import():
    code = (
        "import os, ray, ray._raylet as raylet; from pipeline import ray_internals as i;"
        "before = raylet.get_authentication_mode();"
        "os.environ.update(RAY_AUTH_MODE='token', RAY_AUTH_TOKEN='0' * 64);"
        "i.read_environment_again();"
        "loader = raylet.AuthenticationTokenLoader.instance();"
        "print(before == raylet.AuthenticationMode.TOKEN,"
        " raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN, loader.has_token())"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.stdout == "False True True\n", done.stderr

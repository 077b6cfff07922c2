"""The whole path on one machine without containers: `python -m tests.integration.whole_path`.

Starts what `infra/compose.yaml` starts, as processes on loopback: SeaweedFS, PostgreSQL (sqlite
where it is not installed), an MLflow server, a Ray head with token authentication, and Prometheus
where it is installed. Then it submits every job as a user would, `ray job submit --working-dir . --
python jobs/...`, looks at what each left in the bucket and in MLflow, whether its runs are found by
data, code and checkpoint, and whether Prometheus had a value for each expression of the board. It
prints what it did and the pages to look at, and ends with exit code 0 or 1; `--stay` first leaves
all servers up for that. It stops only what it started.
"""

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import mlflow
import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from jobs.local_s3 import local_s3
from pipeline.checkpoints.environment import git_commit
from pipeline.demo.layouts import write_mini_seven
from tests.integration.found_runs import TRAINING_PAGE, digests_of, not_found, not_led_to
from tests.integration.same_weights import free_ports, head_node
from tests.integration.served_model import name_of_model, wait_until_it_answers
from tests.integration.training_runs import REPOSITORY
from tests.support.mini_shards import paint_vectors
from tests.support.mlflow_server import MlflowServer
from tests.support.postgres_server import missing_for_postgres, postgres_server
from tests.support.prometheus_server import PrometheusServer, expressions, is_installed

DATASETS = ("ade20k", "cityscapes", "coco_panoptic")
JOBS = ("prepare", "train", "evaluate", "sweep", "retrain", "serve")
STEPS = 12
RECIPE = "jobs/recipes/demo.yaml"
MODEL = "lseg-whole-path"
SWEEP = "whole-path-sweep"
# Two cores: all jobs hold less than the head's four logical CPUs.
TRAINING = {
    "data.shards": "s3://lseg/shards",
    "train.steps": STEPS,
    "train.warmup_steps": 2,
    "train.validate_every": STEPS,
    "train.val_images": 2,
    "train.checkpoint_every": STEPS,
    "train.log_every": 4,
    # The board has a chart of it.
    "model.regularizer.kind": "depthwise",
    "model.regularizer.depth": 1,
}
JOB_TIMEOUT_S = 900
EVERY_S = 15
"""Seconds between two looks of Prometheus, as on a cluster."""
CALLS = 8
"""Of the service, each before and after Prometheus has looked."""
RAY = str(Path(sys.executable).with_name("ray"))


class Failed(Exception):
    """A step did not do what it is for."""


@dataclass
class WholePath:
    """The services, and the jobs one after another."""

    folder: Path
    only: tuple[str, ...]
    address: str = ""
    env: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[str, float, str]] = field(default_factory=list)
    stays: bool = False
    prometheus: PrometheusServer | None = None

    def run(self) -> None:
        """Starts the services, runs the jobs, stops the services."""
        with ExitStack() as stack:
            self._services(stack)
            for name in self.only:
                getattr(self, name)()
            if self.only == JOBS:
                self.find()
                if self.prometheus is not None:
                    self.board(self.prometheus)
            for what, link in self._pages():
                print(f"{what:19} {link}", flush=True)
            if self.stays:
                print("all servers stay until Ctrl-C", flush=True)
                with suppress(KeyboardInterrupt):
                    signal.pause()

    def _services(self, stack: ExitStack) -> None:
        with self._step("object store") as done:
            endpoint = stack.enter_context(local_s3(self.folder / "s3", ("raw", "lseg", "mlflow")))
            done(f"SeaweedFS at {endpoint}, buckets raw, lseg, mlflow")
        missing = missing_for_postgres()
        if missing:
            print(f"no PostgreSQL here, MLflow gets a sqlite file: missing is {missing}")
        database = ""
        if not missing:
            with self._step("database") as done:
                database = stack.enter_context(postgres_server())
                done("PostgreSQL on a socket of its own")
        with self._step("MLflow server") as done:
            server = MlflowServer(self.folder, database, "s3://mlflow/artifacts")
            stack.callback(server.kill)
            server.start()
            mlflow.set_tracking_uri(server.uri)
            done(f"{server.uri} over {'PostgreSQL' if database else 'sqlite'}, artifacts in S3")
        with self._step("Ray head") as done:
            (metrics,) = free_ports(1)
            self.address, self.env = stack.enter_context(
                head_node(
                    metrics=metrics,
                    # `python` of a submitted job is looked up in the PATH of the head.
                    PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    RAY_AUTH_MODE="token",
                    RAY_AUTH_TOKEN=secrets.token_hex(32),
                    MLFLOW_TRACKING_URI=server.uri,
                )
            )
            done(f"{self.address}, 4 logical CPUs, token authentication")
        if not is_installed():
            print("no Prometheus here: the board is not looked at (apt install prometheus)")
            return
        with self._step("Prometheus") as done:
            server = PrometheusServer(self.folder, [f"127.0.0.1:{metrics}"], EVERY_S)
            self.prometheus = stack.enter_context(server)
            done(f"{server.uri} fetches from the head every {EVERY_S} s")

    def prepare(self) -> None:
        """Official layouts in the bucket `raw` become shards in the bucket `lseg`."""
        with self._step("raw datasets") as done:
            roots = write_mini_seven(self.folder / "raw", paint_vectors(), 5, 8, 2, DATASETS)
            count = sum(_upload(root, f"raw/{name}") for name, root in roots.items())
            done(f"{count} files of {len(roots)} datasets in their official layouts")
        with self._step("prepare") as done:
            roots_given = {f"roots.{name}": f"s3://raw/{name}" for name in DATASETS}
            self._submit("prepare_shards", **roots_given, out="s3://lseg/shards")
            manifests = [key for key in _keys("lseg", "shards/") if key.endswith("manifest.json")]
            _expect(len(manifests) == 2 * len(DATASETS), f"six manifests, not {manifests}")
            tars = [key for key in _keys("lseg", "shards/") if key.endswith(".tar")]
            done(f"{len(tars)} shards and {len(manifests)} manifests")

    def train(self) -> None:
        """A short training; started again, it says that it is finished."""
        settings = TRAINING | {"run.name": "whole-path", "run.storage": "s3://lseg/runs"}
        with self._step("train") as done:
            self._submit("train_mix", config=RECIPE, **settings)
            keys = _keys("lseg", f"runs/whole-path/step_{STEPS:08d}/")
            _expect(any(key.endswith("model.safetensors") for key in keys), f"weights: {keys}")
            (run,) = _runs("whole-path")
            loss = run.data.metrics.get("train/loss")
            _expect(run.info.status == "FINISHED" and loss is not None, f"a loss: {run.data}")
            done(f"{STEPS} steps, loss {loss:.2f}, checkpoint in S3, run FINISHED in MLflow")
        with self._step("train again") as done:
            output = self._submit("train_mix", config=RECIPE, **settings)
            _expect("is finished" in output, "a finished run must say so")
            _expect(
                len(_runs("whole-path")) == 1, "a finished run must not get a second MLflow run"
            )
            done("the same run.name and run.storage: it is finished, nothing was trained")

    def evaluate(self) -> None:
        """The checkpoint's figures on the validation shards."""
        with self._step("evaluate") as done:
            self._submit(
                "evaluate",
                checkpoint=f"s3://lseg/runs/whole-path/step_{STEPS:08d}",
                protocol="unified",
                shards="s3://lseg/shards",
                out="s3://lseg/evaluation",
                **{"workers.num_workers": 2, "workers.cpus_per_worker": 0.5},
            )
            keys = _keys("lseg", "evaluation/")
            reports = [key for key in keys if key.endswith("/report.json")]
            _expect(len(reports) == 1, f"one report.json: {keys}")
            (run,) = _runs("whole-path")
            figures = [name for name in run.data.metrics if name.endswith("miou")]
            done(f"{reports[0]}; the MLflow run has {', '.join(sorted(figures)[:4])}")

    def sweep(self) -> None:
        """Two learning rates, compared in the parent run."""
        sweep = {
            "name": SWEEP,
            "base": RECIPE,
            "storage": "s3://lseg/sweeps",
            "overrides": TRAINING,
            "grid": {"train.lr": [0.001, 0.003]},
            "metric": "val/pixel_accuracy",
            "max_concurrent": 1,
        }
        file = self.folder / "sweep.yaml"
        file.write_text(yaml.safe_dump(sweep))
        with self._step("sweep") as done:
            self._submit("sweep", config=file)
            (parent,) = _runs(sweep["name"])
            children = _runs(parent=parent.info.run_id)
            _expect(len(children) == 2, f"two trials below the sweep's run: {children}")
            keys = _keys("lseg", f"sweeps/{sweep['name']}/report/")
            _expect(len(keys) > 0, "a report in the bucket")
            done(f"2 trials below one MLflow run, {len(keys)} files of comparison in S3")

    def retrain(self) -> None:
        """As a scheduler does, by infra/retrain.sh: first a champion, then nothing to do."""
        settings = {
            "config": RECIPE,  # First: what comes later on a command line overrides it.
            **TRAINING,
            "run.storage": "s3://lseg/runs",
            "run.name": "nightly",
            "registry.name": MODEL,
            "comparison.workers.num_workers": 2,
            "comparison.workers.cpus_per_worker": 0.5,
        }
        with self._step("retrain") as done:
            output = self._retrain(settings)
            _expect(f"labels, {STEPS} steps of" in output, "the training that was asked for")
            version = _champion()
            done(f"no champion: trained, version {version} of {MODEL} is champion")
        with self._step("retrain again") as done:
            self._retrain(settings)
            _expect(_champion() == version, f"version {version} to stay champion")
            found = mlflow.MlflowClient().search_model_versions(f"name = '{MODEL}'")
            _expect(len(found) == 1, f"one version, since nothing changed: {found}")
            done("nothing changed: no training, the champion stays")
        with self._step("retrain, wrong") as done:
            self._retrain(settings | {"margin": -1}, expected_code=2)
            done("a wrong setting: the exit code 2 comes through to the scheduler")

    def serve(self) -> None:
        """The champion answers over HTTP until its job is stopped."""
        with self._step("serve") as done:
            (port,) = free_ports(1)
            checkpoint = f"models:/{MODEL}@champion"
            name = f"serve-{time.monotonic_ns()}"
            # Stopped by SIGKILL after Ray's three seconds, a job leaves its service behind.
            stop_wait = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
            options = ("--no-wait", "--submission-id", name, "--runtime-env-json", stop_wait)
            self._submit("serve", options, checkpoint=checkpoint, port=port)
            _expect(wait_until_it_answers(port, JOB_TIMEOUT_S), "the service to answer")
            found = [name_of_model(port, seed) for seed in range(CALLS)]
            time.sleep(3 * EVERY_S)  # Prometheus is to see the counts twice.
            found += [name_of_model(port, seed) for seed in range(CALLS)]
            self._wait("stop", [RAY, "job", "stop", "--address", self.address, name], self.env)
            _expect(set(found) == {f"models:/{MODEL}/{_champion()}"}, f"the champion, not {found}")
            _expect(not wait_until_it_answers(port, 1), "no answer once the job is stopped")
            done(f"{len(found)} calls answered by {found[0]}, and its job stopped")

    def find(self) -> None:
        """Runs are found by data, code and checkpoints; the champion's page leads back to them."""
        with self._step("find") as done:
            client = mlflow.MlflowClient()
            champion = client.get_model_version(MODEL, _champion())
            runs = [run for run in _runs() if run.data.tags.get("checkpoint.best")]
            (trained,) = _runs("whole-path")
            retrained = client.get_run(str(champion.run_id))
            for run in (trained, retrained):
                for context in ("train", "validation"):
                    found = set(digests_of(run, context))
                    _expect(found == set(DATASETS), f"{DATASETS} as {context} data, not {found}")
                wrong = not_found(run, _runs())
                _expect(not wrong, f"run {run.info.run_name} by each filter: {wrong}")
            commit = retrained.data.tags["git_commit"]
            _expect(commit == git_commit(), f"the commit of this checkout, not {commit}")
            wrong = not_led_to(champion, retrained)
            _expect(not wrong, f"the champion's page to lead to {wrong}:\n{champion.description}")
            listed = self._submit("registry", action="list", **{"registry.name": MODEL})
            _expect("(those of this checkout)" in listed, "the list to know these sources")
            done(
                f"each of {len(runs)} trainings by data, code and checkpoint; version "
                f"{champion.version} leads to its run, data, code and checkpoint"
            )

    def _pages(self) -> Iterator[tuple[str, str]]:
        """What to look at, as addresses that a browser opens."""
        uri = mlflow.get_tracking_uri()
        for what, runs in (("run", _runs("whole-path")), ("sweep", _runs(SWEEP))):
            for run in runs:
                place = f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
                yield f"MLflow, {what}", f"{place}?{TRAINING_PAGE}"
        if mlflow.MlflowClient().search_registered_models(f"name = '{MODEL}'"):
            yield "MLflow, model", f"{uri}/#/models/{MODEL}?{TRAINING_PAGE}"
        if trials := [run for sweep in _runs(SWEEP) for run in _runs(parent=sweep.info.run_id)]:
            ids = json.dumps([run.info.run_id for run in trials])
            experiments = json.dumps(sorted({run.info.experiment_id for run in trials}))
            words = urllib.parse.urlencode({"runs": ids, "experiments": experiments})
            yield "MLflow, two trials", f"{uri}/#/compare-runs?{words}&{TRAINING_PAGE}"
        yield "Ray", self.address
        if self.prometheus is not None:
            uri = self.prometheus.uri
            yield "Prometheus, alerts", f"{uri}/alerts"
            yield "Prometheus, steps", f"{uri}/graph?{_graph('ray_lseg_training_step')}"

    def board(self, prometheus: PrometheusServer) -> None:
        """Each expression of board and rules had a value while the jobs ran."""
        with self._step("board") as done:
            asked = expressions()
            unanswered = prometheus.unanswered(asked)
            _expect(not unanswered, f"a value for {unanswered}")
            fired = prometheus.fired()
            _expect(not fired, f"no alert while all is well: {fired}")
            done(f"{len(asked)} expressions of board and rules had values, no alert fired")

    def _retrain(self, settings: dict[str, Any], expected_code: int = 0) -> str:
        arguments = " ".join(_words(settings))
        print(f"    LSEG_RETRAIN_ARGS='{arguments}' infra/retrain.sh")
        more = {"RAY_ADDRESS": self.address, "LSEG_RETRAIN_ARGS": arguments, "LSEG_RAY": RAY}
        return self._wait("retrain", ["infra/retrain.sh"], self.env | more, expected_code)

    @contextmanager
    def _step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Prints a step's line; its argument says what came of it."""
        said: list[str] = []
        began = time.perf_counter()
        print(f"... {name}", flush=True)
        yield said.append
        seconds = time.perf_counter() - began
        self.rows.append((name, seconds, said[0]))
        print(f"    {name}: {said[0]} ({seconds:.1f} s)", flush=True)

    def _submit(self, job: str, options: Sequence[str] = (), /, **arguments: Any) -> str:
        """Submits a job and waits for its end, unless an option says otherwise; what it printed."""
        words = _words(arguments)
        command = [RAY, "job", "submit", "--address", self.address, "--working-dir", "."]
        command += [*options, "--"]
        command += ["python", f"jobs/{job}.py", *words]
        print(f"    ray job submit --working-dir . -- python jobs/{job}.py {' '.join(words)}")
        return self._wait(job, command, self.env)

    def _wait(
        self, job: str, command: list[str], env: dict[str, str], expected_code: int = 0
    ) -> str:
        log = self.folder / f"{job}-{time.monotonic_ns()}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=env, stdout=file, stderr=subprocess.STDOUT
            )
            try:
                code = process.wait(JOB_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise Failed(f"{job}: not finished in {JOB_TIMEOUT_S} s; {_tail(log)}") from None
            finally:
                process.kill()  # After a timeout or Ctrl-C; the head takes the job itself along.
        if code != expected_code:
            raise Failed(f"{job}: exit code {code} instead of {expected_code}; {_tail(log)}")
        return log.read_text(errors="replace")


def _words(arguments: dict[str, Any]) -> list[str]:
    """The command line of a job."""
    return [word for key, value in arguments.items() for word in (f"--{key}", str(value))]


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(f"expected {what}")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-40:]
    return "its last lines:\n" + "\n".join(lines)


def _upload(folder: Path, place: str) -> int:
    """Copies a folder to `BUCKET/PREFIX`; the number of files."""
    bucket, _, prefix = place.partition("/")
    client = boto3.client("s3")
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")
    return len(files)


def _keys(bucket: str, prefix: str) -> list[str]:
    pages = (
        boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    )
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def _runs(name: str = "", parent: str = "") -> list[Run]:
    """The MLflow runs of that name, those below another one, or all."""
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    wanted = f"run_name = '{name}'" if name else ""
    wanted = f"tags.mlflow.parentRunId = '{parent}'" if parent else wanted
    return list(client.search_runs(experiments, wanted))


def _graph(expression: str) -> str:
    """The query of a page of Prometheus that draws an expression over half an hour."""
    return urllib.parse.urlencode({"g0.expr": expression, "g0.tab": 0, "g0.range_input": "30m"})


def _champion() -> str:
    try:
        return str(mlflow.MlflowClient().get_model_version_by_alias(MODEL, "champion").version)
    except MlflowException as error:
        raise Failed(f"expected a champion of {MODEL}: {error}") from None


def main(argv: list[str] | None = None) -> int:
    """Runs the path and prints a table."""
    parser = argparse.ArgumentParser(description="The whole path on one machine.")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--out", type=Path, help="Folder that keeps logs and data; else they go.")
    parser.add_argument("--stay", action="store_true", help="Leave the servers up at the end.")
    given = parser.parse_args(argv)
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_TRACKING"))]:
        del os.environ[name]
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    # So that a stop ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="whole-path-") as temporary:
        folder = (given.out or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        path = WholePath(folder, tuple(given.jobs), stays=given.stay)
        try:
            path.run()
        except Failed as error:
            print(f"FAILED: {error}", flush=True)
            return 1
    print()
    for name, seconds, what in path.rows:
        print(f"{name:14} {seconds:7.1f} s  {what}")
    print(f"the whole path: ok in {time.perf_counter() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

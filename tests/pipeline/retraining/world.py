"""A re-training without networks: a real registry, real storage and real locks; data, training and
evaluation are files that tests write. Processes of their own may call it, and be killed in it.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from pipeline.errors import UserError
from pipeline.registry.config import RegistryConfig
from pipeline.registry.locks import LockConfig
from pipeline.registry.registry import Registry
from pipeline.retraining.config import RetrainConfig
from pipeline.retraining.data import DataState
from pipeline.retraining.record import DecisionRecord
from pipeline.retraining.runner import Result, Retraining, Trained, Work
from pipeline.retraining.state import Attempt, StateFile
from pipeline.storage.open import open_storage
from pipeline.training.config import RunConfig

DATASETS = ("ade20k", "coco", "idd")


@dataclass(frozen=True)
class World:
    """One registered model and its surroundings.

    `data.json` holds the fingerprints, `scores.json` the mIoU that the next training reaches.
    """

    uri: str
    name: str
    folder: Path
    checkpoint: Path
    """A real one, to copy."""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> RetrainConfig:
        return RetrainConfig(
            run=RunConfig(name=self.name, storage=str(self.folder / "runs")),
            registry=RegistryConfig(name=self.name),
            **({"lock": LockConfig(expires_s=4.0, beat_s=0.5)} | self.settings),
        )

    def asking(self, **settings: Any) -> "World":
        """The same with other settings."""
        return replace(self, settings=self.settings | settings)

    @cached_property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    @property
    def models(self) -> Registry:
        return Registry(self.uri, self.name)

    @property
    def storage(self):
        return open_storage(f"{self.folder}/runs/retrain/{self.name}")

    def arrive(self, fingerprint: str, *scores: float) -> None:
        """New training shards, on which a training will reach this mIoU on each dataset."""
        training = {f"manifest.{name}": fingerprint for name in DATASETS}
        validation = {f"validation.{name}": "v1" for name in DATASETS}
        content = {"training": training, "validation": validation}
        (self.folder / "data.json").write_text(json.dumps(content))
        (self.folder / "scores.json").write_text(json.dumps(scores))

    def data(self) -> DataState:
        return DataState(**json.loads((self.folder / "data.json").read_text()))

    def train(self, attempt: Attempt) -> Trained:
        """Makes a checkpoint with the scores of the data; a second call finds it as it was."""
        self.note(f"train {attempt.run_name} {attempt.start} {attempt.start_from}")
        folder = self.folder / "runs" / attempt.run_name / "step_00000004"
        if not folder.exists():
            folder.mkdir(parents=True)
            for file in self.checkpoint.iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
        scores = json.loads((self.folder / "scores.json").read_text())
        metrics = {f"{n}/miou": s for n, s in zip(DATASETS, scores, strict=True)} | {"step": 4}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        found = self.client.search_runs(["0"], f"attributes.run_name = '{attempt.run_name}'")
        run = found[0] if found else self.client.create_run("0", run_name=attempt.run_name)
        return Trained(str(folder), run.info.run_id, {"val/miou": scores[0]})

    def evaluate(self, checkpoint: str) -> Mapping[str, float]:
        """The scores that lie in the checkpoint, wherever the registry keeps it."""
        from model.checkpoint import local
        from pipeline.checkpoints import resolvers  # noqa: F401

        found = json.loads((local(checkpoint) / "metrics.json").read_text())
        self.note("evaluate " + " ".join(f"{found[f'{name}/miou']}" for name in DATASETS))
        scores = [found[f"{name}/miou"] for name in DATASETS]
        return found | {"miou": sum(scores) / len(scores)}

    def note(self, line: str) -> None:
        """Adds to the list of what was done."""
        with (self.folder / "done.txt").open("a") as file:
            file.write(line + "\n")

    def done(self, what: str) -> list[str]:
        """Lines of the list that begin so."""
        path = self.folder / "done.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(what)]

    def retraining(self) -> Retraining:
        record = DecisionRecord(self.client, self.name, self.storage)
        work = Work(self.data, self.train, self.evaluate)
        return Retraining(self.config, self.models, record, self.storage, work)

    def call(self, **settings: Any) -> Result:
        """What the scheduler calls."""
        return self.asking(**settings).retraining().run()

    def champion(self) -> str:
        """Version in service, "" for none."""
        found = self.models.alias("champion")
        return str(found.version) if found else ""

    def tags(self, version: str) -> dict[str, str]:
        return self.client.get_model_version(self.name, version).tags

    def decisions(self) -> list[dict[str, Any]]:
        """The decision log, in order."""
        entries = sorted(entry.path for entry in self.storage.list("decisions"))
        return [json.loads(self.storage.read(path)) for path in entries]

    def attempt(self) -> Attempt | None:
        return StateFile(self.storage).read()


def kill_myself(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_around(owner: type, method: str, when: str, matches: Callable[..., bool]) -> None:
    """Makes this process die before or after a method whose arguments match."""
    original = getattr(owner, method)

    def dying(self, *args, **kwargs):
        if not matches(*args, **kwargs):
            return original(self, *args, **kwargs)
        if when == "after":
            original(self, *args, **kwargs)
        kill_myself()

    setattr(owner, method, dying)


def run_and_die(world: World, owner: str, method: str, when: str, what: str) -> None:
    """The target of a process that is killed at a point of a call."""
    owners = {c.__name__: c for c in (StateFile, Registry, DecisionRecord, World)}
    matches: dict[str, Callable[..., bool]] = {
        "StateFile": lambda attempt: attempt.phase == what or what in attempt.figures,
        "Registry": lambda *args, **_: what in (*args, *args[-1], "CHECKPOINT"),
        "DecisionRecord": lambda *args: what in args[-1],
        "World": lambda *_: True,
    }
    kill_around(owners[owner], method, when, matches[owner])
    os.environ["MLFLOW_TRACKING_URI"] = world.uri
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"
    world.call()


def run_as_machine(world: World, place: str, results: Any) -> None:
    """The target of a process that believes to be on a machine of its own."""
    import pipeline.storage.lease as lease_module

    lease_module._host_id = lambda: place
    run_and_tell(world, results)


def run_and_tell(world: World, results: Any) -> None:
    """The target of a process that says how its call ended."""
    os.environ["MLFLOW_TRACKING_URI"] = world.uri
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"
    try:
        results.put((os.getpid(), world.call().kind))
    except UserError as error:
        results.put((os.getpid(), f"{error.exit_code} {error}"))


@dataclass(frozen=True)
class SlowWorld(World):
    """Its training lasts until there is a file `go`."""

    def train(self, attempt: Attempt) -> Trained:
        self.note(f"begin {os.getpid()}")
        while not (self.folder / "go").exists():
            time.sleep(0.05)
        return super().train(attempt)

"""The jobs whose writes are faulted: the command of each, and what must come of it.

A job works on the data of a *world* (photos, shards, a recipe and a finished run, which
`write_points` makes) and writes into a *place* of its own.
"""

import contextlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

STEPS = 4
"""Of each training."""
_CHECKPOINT = f"runs/one/step_{STEPS:08d}"


@dataclass(frozen=True)
class Job:
    """A job on a world, its command in a folder of its own, and what must come of it."""

    words: Callable[[Path, Path], list[str]]
    result: Callable[[Path], object]
    """All that must be the same after a fault as without one."""
    prepare: Callable[[Path, Path], None] = lambda world, place: None
    databases: bool = False
    """Whether it writes to MLflow's database alone, so that its commits are the points."""
    refused: int = 2
    """Exit code of a call that finds another one at work."""


def checkpoint_of(world: Path) -> Path:
    """The one that the world's own training made."""
    return world / "made-train" / _CHECKPOINT


def files_of(folder: Path, but: str = r"$^") -> dict[str, bytes]:
    """The files below a folder but locks, half-written ones, and those that match a pattern."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {str(path.relative_to(folder)): path for path in files}
    ignored = re.compile(rf"(^|/)\.[^/]*\.(partial|lock)$|\.lock$|{but}")
    return {name: named[name].read_bytes() for name in sorted(named) if not ignored.search(name)}


def rows(place: Path, query: str) -> list[tuple[Any, ...]]:
    """What MLflow's database says."""
    with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as database:
        return database.execute(query).fetchall()


_RUNS = "select name, status, count(*) from runs group by name, status order by name"


def _weights(folder: Path) -> dict[str, float]:
    tensors = load_file(folder / "model.safetensors")
    return {name: float(t.double().norm()) for name, t in sorted(tensors.items())}


def _trained(place: Path) -> object:
    folder = place / f"runs/one/step_{STEPS:08d}"
    names = sorted(path.name for path in folder.iterdir())
    order = (folder / "order.txt").read_text()
    kept = sorted(p.name for p in (place / "runs/one").glob("step_*"))[-1]
    return names, order, _weights(folder), kept, rows(place, _RUNS)


def _evaluated(place: Path) -> object:
    (report,) = (place / "out").glob("*/report.json")
    content = json.loads(report.read_text())
    names = sorted(files_of(place / "out", r"tracking-"))
    figures = {key: content[key] for key in content if key in ("parts", "figures", "metrics")}
    return names, json.dumps(figures, sort_keys=True), rows(place, _RUNS)


def _registered(place: Path) -> object:
    return rows(place, "select name, version, status from model_versions"), rows(
        place, "select alias, version from registered_model_aliases"
    )


def _swept(place: Path) -> object:
    content = json.loads((place / "sweeps/two/report/comparison.json").read_text())
    trials = sorted((t["name"], t["status"]) for t in content["trials"])
    return trials, sorted(files_of(place / "sweeps/two/report"))


def _retrained(place: Path) -> object:
    decisions = sorted((place / "runs/retrain/lseg/decisions").glob("*.json"))
    kinds = [json.loads(path.read_text())["kind"] for path in decisions]
    return _registered(place), kinds


def _with_run(world: Path, place: Path) -> None:
    """A copy of the training's folder, which the job adds to."""
    if not (place / "runs").exists():
        shutil.copytree(world / "made-train/runs", place / "runs")
        shutil.copy(world / "made-train/mlflow.db", place / "mlflow.db")


def _train_words(world: Path, place: Path) -> list[str]:
    return ["--config", str(world / "recipe.yaml"), *_tracking(place)]


def _tracking(place: Path) -> list[str]:
    return ["--tracking.uri", f"sqlite:///{place}/mlflow.db"]


_WORKERS = ("num_workers=1", "cpus_per_worker=0.5", "use_gpu=false")


def _sweep_words(world: Path, place: Path) -> list[str]:
    content = {
        "name": "two", "base": str(world / "recipe.yaml"), "storage": str(place / "sweeps"),
        "grid": {"train.lr": [0.01, 0.02]}, "metric": "val/pixel_accuracy", "max_concurrent": 1,
        "overrides": {"train.validate_every": STEPS},
        "tracking": {"uri": f"sqlite:///{place}/mlflow.db"},
    }  # fmt: skip
    file = world / f"{place.name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return ["sweep.py", "--config", str(file)]


JOBS: dict[str, Job] = {
    "prepare": Job(
        lambda world, place: [
            "prepare_shards.py", f"--roots.cityscapes={world}/raw/cityscapes",
            f"--out={place}/out", "--samples_per_shard=4", "--workers=1",
        ],
        lambda place: files_of(place / "out"),
    ),
    "predict": Job(
        lambda world, place: [
            "predict.py", str(world / "photos"), "--labels=road, sky", "--overlay=true",
            f"--checkpoint={checkpoint_of(world)}", f"--out={place}/out",
        ],
        lambda place: files_of(place / "out"),
    ),
    "registry": Job(
        lambda world, place: [
            "registry.py", "register", str(place / _CHECKPOINT), "--alias=candidate",
            *_tracking(place),
        ],
        _registered,
        _with_run,
        databases=True,
    ),
    "evaluate": Job(
        lambda world, place: [
            "evaluate.py", f"--checkpoint={place / _CHECKPOINT}", "--protocol=unified",
            f"--shards={world}/shards", f"--out={place}/out", "--examples=1",
            *(f"--workers.{word}" for word in _WORKERS), *_tracking(place),
        ],
        _evaluated,
        _with_run,
    ),
    "train": Job(
        lambda world, place: [
            "train_mix.py", *_train_words(world, place), f"--run.storage={place}/runs",
            "--run.name=one",
        ],
        _trained,
    ),
    "sweep": Job(_sweep_words, _swept),
    "retrain": Job(
        lambda world, place: [
            "retrain.py", *_train_words(world, place), f"--run.storage={place}/runs",
            "--run.name=night", "--train.validate_every=4",
            *(f"--comparison.workers.{word}" for word in _WORKERS),
        ],
        _retrained,
        refused=75,  # As jobs/retrain.py says of its exit codes: the scheduler tries again.
    ),
}  # fmt: skip

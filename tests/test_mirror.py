"""Where each module is tested: so that a test that fails points at a file, and none goes without.

A module of a room is tested by the file of its name in the mirrored room of `tests/`, or by another
file of that room that imports it, or by the one that stands in the table below.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "model", "jobs")

TESTED_ELSEWHERE = {
    "model.backbone.timm_models": "model/backbone/test_levels.py",
    "model.head.cost_decoder": "model/head/test_aggregator.py",
    "model.head.dpt": "model/test_lseg.py",
    "model.hub_files": "model/text/test_encoders.py",
    "model.network": "model/test_lseg.py",
    "model.text.encoder": "model/text/test_encoders.py",
    "model.text.open_clip_tower": "model/text/test_encoders.py",
    "model.upsampling": "model/head/test_scoring.py",
    "pipeline.checkpoints.prefetched": "jobs/test_fetch_weights.py",
    "pipeline.data.datasets.few_shot.fss": "pipeline/data/datasets/few_shot/test_training.py",
    "pipeline.data.datasets.found": "pipeline/data/datasets/test_own.py",
    "pipeline.data.datasets.matlab_files": "pipeline/data/datasets/test_matlab.py",
    "pipeline.data.datasets.own_classes": "pipeline/data/datasets/test_own.py",
    "pipeline.data.datasets.polygons": "pipeline/data/datasets/test_idd.py",
    "pipeline.data.datasets.sunrgbd_layouts": "pipeline/data/datasets/test_sunrgbd_official.py",
    "pipeline.data.ingest.config": "pipeline/data/ingest/test_stream.py",
    "pipeline.data.inspect.check": "jobs/test_doctor.py",
    "pipeline.data.inspect.page": "jobs/test_preview.py",
    "pipeline.data.inspect.report": "jobs/test_doctor.py",
    "pipeline.data.inspect.roots": "jobs/test_doctor.py",
    "pipeline.data.inspect.samples": "jobs/test_preview.py",
    "pipeline.data.inspect.shards": "jobs/test_doctor.py",
    "pipeline.data.pixels.palette": "pipeline/inference/test_overlay.py",
    "pipeline.data.prepare.config": "jobs/test_prepare_shards.py",
    "pipeline.data.prepare.run": "jobs/test_prepare_shards.py",
    "pipeline.data.prepare.split_job": "jobs/test_prepare_shards.py",
    "pipeline.data.taxonomy.labelling": "pipeline/data/prepare/test_convert.py",
    "pipeline.demo.examples": "jobs/test_playground.py",
    "pipeline.evaluation.behaviours.classes": "pipeline/demo/test_world.py",
    "pipeline.evaluation.behaviours.run": "pipeline/demo/test_report.py",
    "pipeline.evaluation.page": "pipeline/evaluation/test_evaluate.py",
    "pipeline.evaluation.published": "pipeline/evaluation/test_evaluate.py",
    "pipeline.evaluation.report": "pipeline/evaluation/test_evaluate.py",
    "pipeline.inference.served_entry": "pipeline/inference/test_served_model.py",
    "pipeline.preflight.probe": "jobs/test_check_cluster.py",
    "pipeline.preflight.run": "jobs/test_check_cluster.py",
    "pipeline.registry.actions": "pipeline/retraining/test_runner.py",
    "pipeline.registry.facts": "pipeline/registry/test_registry.py",
    "pipeline.serving.on_ray": "jobs/test_serve.py",
    "pipeline.storage.archives.table": "pipeline/storage/archives/test_archive.py",
    "pipeline.storage.node_copies": "pipeline/storage/archives/test_archive.py",
    "pipeline.storage.retry": "pipeline/training/driver/test_failures.py",
    "pipeline.tracking.trial": "jobs/test_check_cluster.py",
    "pipeline.training.job": "pipeline/training/worker/test_nonfinite.py",
    "pipeline.training.plan": "pipeline/training/driver/test_resume.py",
    "pipeline.training.saving.best": "pipeline/training/saving/test_saver.py",
    "pipeline.training.worker.device_batches": "pipeline/training/worker/test_hurry.py",
    "pipeline.training.worker.diagnosis": "pipeline/training/worker/test_nonfinite.py",
    "pipeline.training.worker.preemption": "pipeline/training/worker/test_hurry.py",
}
"""Module to test file: those that are parts of what the test drives as a whole."""


def modules() -> list[str]:
    """Of the rooms and of the network, by dotted name."""
    files = [path for top in ("pipeline", "model") for path in (ROOT / top).rglob("*.py")]
    return sorted(name_of(path) for path in files if path.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def file_of(name: str) -> Path:
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def imports(path: Path) -> frozenset[str]:
    """What a file of ours imports of ours, also within functions, by dotted name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if file_of(name).is_file()} or {node.module}
    own = (*PACKAGES, "tests")
    return frozenset(
        name for name in found if name.split(".")[0] in own and file_of(name).is_file()
    )


def reached(path: Path) -> set[str]:
    """All that a file imports, and what that imports in turn."""
    found: set[str] = set()
    todo = [path]
    while todo:
        new = imports(todo.pop()) - found
        found |= new
        todo += [file_of(name) for name in new]
    return found


def test_every_module_is_tested_in_the_mirrored_room_or_says_where():
    lost = []
    for name in modules():
        room = ROOT / "tests" / file_of(name).parent.relative_to(ROOT)
        same_name = room / f"test_{name.rpartition('.')[2]}.py"
        if not same_name.is_file() and all(name not in imports(p) for p in room.glob("test_*.py")):
            lost.append(name)
    assert lost == sorted(TESTED_ELSEWHERE)


@pytest.mark.parametrize("name", sorted(TESTED_ELSEWHERE))
def test_the_file_that_the_table_names_drives_the_module(name):
    path = ROOT / "tests" / TESTED_ELSEWHERE[name]
    assert "def test_" in path.read_text()
    modules_reached = reached(path)
    # A registered model finds its entry by the file's name.
    by_name = f'"{file_of(name).name}"'
    assert name in modules_reached or any(
        by_name in file_of(m).read_text() for m in modules_reached
    )

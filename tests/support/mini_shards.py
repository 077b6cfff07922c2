"""Prepared shards of three datasets of the mini-seven, and the smallest run on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import BackboneConfig, ModelConfig, TextConfig
from model.stand_in import stand_in_semantics
from pipeline.data.ingest.augment import AugmentConfig
from pipeline.data.ingest.stream import DataConfig
from pipeline.data.prepare.config import PrepareConfig, RootsConfig
from pipeline.data.prepare.run import prepare
from pipeline.data.shards.format import Manifest, SampleRecord, ShardRecord
from pipeline.data.taxonomy import label_text, universal
from pipeline.demo.layouts import write_mini_seven
from pipeline.demo.world import world_classes
from pipeline.storage.open import open_storage
from pipeline.tracking.tracker import TrackingConfig
from pipeline.training.config import ClusterConfig, RunConfig, TrainConfig, TrainMixConfig
from tests.support.mlflow_store import new_store

DATASETS = ("ade20k", "cityscapes", "coco_panoptic")
NUM_TRAIN, NUM_VAL = 8, 2

AUGMENT = AugmentConfig(crop_px=48, base_px=64, scale=(0.5, 1.25))
"""At scale 0.5 a crop is partly padding, so that batches differ in labelled pixels."""


def paint_vectors() -> dict[str, np.ndarray]:
    """(17,) float32 by universal class, as the demo paints them."""
    names = world_classes()
    rows = stand_in_semantics([label_text(name) for name in names])
    return dict(zip(names, rows, strict=True))


@dataclass(frozen=True)
class MiniShards:
    """Shards of `DATASETS`, and an MLflow store for the runs on them."""

    folder: Path
    tracking_uri: str

    def data(self, **values: Any) -> DataConfig:
        """The data part of a configuration."""
        defaults: dict[str, Any] = {"shards": str(self.folder), "augment": AUGMENT}
        loaders = {"num_loaders": 1, "loader_cpus": 0.25, "loader_threads": 1}
        return DataConfig(**(defaults | loaders | values))

    def config(
        self, storage: Path, name: str, num_workers: int = 1, max_failures: int = 0, **train: Any
    ) -> TrainMixConfig:
        """A run of a few steps of a tiny network; `train` are settings of TrainConfig."""
        defaults: dict[str, Any] = {"steps": 4, "batch_size": 4, "lr": 0.01, "log_every": 2}
        defaults |= {"validate_every": 0, "val_images": 1, "checkpoint_every": 1000}
        return TrainMixConfig(
            run=RunConfig(name=name, storage=str(storage), seed=3),
            data=self.data(),
            model=tiny_model(),
            train=TrainConfig(**(defaults | train)),
            cluster=ClusterConfig(
                num_workers=num_workers,
                cpus_per_worker=0.5,
                threads_per_worker=1,
                max_failures=max_failures,
            ),
            tracking=TrackingConfig(uri=self.tracking_uri),
        )


def write_manifests(folder: Path, datasets: Sequence[str], split: str) -> None:
    """Manifests of shards with ten samples each, without the shards themselves."""
    classes = universal()
    samples = tuple(SampleRecord(f"s{i}", 1024 * i, 1024, 8, 8, 0) for i in range(10))
    for name in datasets:
        shards = (ShardRecord(f"{name}-{split}-000000.tar", 10240, "0" * 64, samples),)
        manifest = Manifest(
            2, name, split, classes.name, classes.fingerprint, "", {}, shards, (1,) * 194, ()
        )
        storage = open_storage(str(folder))
        storage.write(f"{name}/{split}/manifest.json", manifest.to_json().encode())


def tiny_model(**values: Any) -> ModelConfig:
    """A network of four thin blocks on 48-pixel crops."""
    size = {"patch_size": 8, "depth": 4, "embed_dim": 32, "num_heads": 2, "img_size": 48}
    backbone = BackboneConfig(name="vit_tiny_patch16_224", pretrained=False, kwargs=size)
    text = TextConfig(encoder="stand-in")
    return ModelConfig(**({"backbone": backbone, "text": text, "features": 16} | values))


@pytest.fixture(scope="session")
def mini_shards(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> MiniShards:
    """Made by the official layouts, the readers and the conversion; not to be written to."""
    folder = tmp_path_factory.mktemp("mini")
    roots = write_mini_seven(folder / "raw", paint_vectors(), 5, NUM_TRAIN, NUM_VAL, DATASETS)
    given = RootsConfig(**{name: str(root) for name, root in roots.items()})
    out = folder / "shards"
    prepare(PrepareConfig(roots=given, out=str(out), samples_per_shard=3))
    return MiniShards(out, new_store(folder))

"""A tiny checkpoint that can be evaluated on the mini-seven."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from model.checkpoint import save_checkpoint
from model.lseg import LSeg, build_lseg
from pipeline.data.ingest.stream import open_corpus
from pipeline.data.taxonomy import universal
from pipeline.evaluation.config import EvaluateConfig, Geometry, WorkersConfig
from pipeline.evaluation.launch import Evaluation, evaluate
from pipeline.tracking.tracker import Tracker, TrackingConfig
from tests.support.mini_shards import MiniShards, tiny_model

TRAINED = tuple(name for name in universal().classes if name not in ("horse", "bus"))


def spread_predictions(lseg: LSeg) -> None:
    """Makes a network of random weights predict dozens of labels, where it would give one or two.

    All its pixel vectors have nearly the same direction; the head's bias takes their mean away.
    """
    blocks = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    image = torch.from_numpy(np.kron(blocks, np.ones((8, 8, 1), np.uint8)))[None]
    with torch.no_grad():
        features = lseg.eval().trunk(lseg.normalize(image)).features_BFhw
        mean = features.mean((0, 2, 3))
        lseg.decoder.head.bias.copy_(-lseg.decoder.head.weight[:, :, 0, 0] @ mean)


@pytest.fixture(scope="session")
def tiny_checkpoint(mini_shards: MiniShards, tmp_path_factory) -> Path:
    """Random weights, but all the files of a training on `mini_shards`."""
    folder = tmp_path_factory.mktemp("runs") / "tiny" / "step_00000007"
    torch.manual_seed(0)
    lseg = build_lseg(tiny_model(), 512)
    spread_predictions(lseg)
    extra = {
        "run": {"name": "tiny", "storage": str(folder.parents[1])},
        "data": {"shards": str(mini_shards.folder), "train_split": "train"},
        "tracking": {"uri": mini_shards.tracking_uri, "experiment": "lseg"},
    }
    save_checkpoint(folder, lseg, TRAINED, extra_config=extra)
    corpus = open_corpus(str(mini_shards.folder), "train")
    tags = {f"manifest.{name}": m.fingerprint for name, m in corpus.manifests.items()}
    (folder / "provenance.json").write_text(json.dumps({"git_commit": "0" * 40, **tags}))
    (folder / "metrics.json").write_text(json.dumps({"step": 7}))
    # The training's own run, and the file by which it is found again.
    spill = folder.parent / "tracking-tiny.jsonl"
    tracking = TrackingConfig(uri=mini_shards.tracking_uri)
    tracker = Tracker.start(tracking, run_name="tiny", spill_path=spill)
    tracker.log_metrics({"train/loss": 1.0}, 7)
    assert tracker.wait_for_run(60)
    tracker.close()
    assert yaml.safe_load((folder / "config.yaml").read_text())["run"]["name"] == "tiny"
    return folder


def config_of(mini_shards: MiniShards, checkpoint: Path, out: Path) -> EvaluateConfig:
    """Unified classes on the validation shards, one worker."""
    return EvaluateConfig(
        checkpoint=str(checkpoint),
        shards=str(mini_shards.folder),
        out=str(out),
        geometry=Geometry(base_px=64),
        examples=0,
        workers=WorkersConfig(
            num_workers=1, cpus_per_worker=0.5, use_gpu=False, chunk_images=1, max_failures=1
        ),
    )


@pytest.fixture
def base_config(mini_shards: MiniShards, tiny_checkpoint: Path, tmp_path: Path) -> EvaluateConfig:
    """A configuration that writes to a folder of the test's own."""
    return config_of(mini_shards, tiny_checkpoint, tmp_path / "out")


@pytest.fixture(scope="module")
def unified(mini_shards: MiniShards, tiny_checkpoint: Path, tmp_path_factory) -> Evaluation:
    """One finished evaluation by one worker, with images; not to be written to."""
    config = config_of(mini_shards, tiny_checkpoint, tmp_path_factory.mktemp("unified"))
    return evaluate(replace(config, examples=1))

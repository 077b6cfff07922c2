"""The training loop over a network with the cost head."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.config import BackboneConfig, HeadConfig
from model.lseg import LSeg
from pipeline.training.saving import checkpoint
from pipeline.training.worker import loop
from tests.support.lone_worker import LoneWorker, process_group, rest_of  # noqa: F401
from tests.support.mini_shards import MiniShards, tiny_model

pytestmark = pytest.mark.usefixtures("process_group")

SIZE = {"patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2, "img_size": 48}


def test_it_trains_and_resumes_to_the_bit(mini_shards: MiniShards, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "Saver", lambda *_: SimpleNamespace(news=0))  # Saved below.
    backbone = BackboneConfig(
        name="vit_base_patch16_clip_quickgelu_224",
        pretrained=False,
        kwargs={**SIZE, "num_classes": 512},
    )
    config = mini_shards.config(tmp_path, "cost", steps=4, ema_decay=0.5)
    head = HeadConfig(kind="cost", padded=8)
    model = tiny_model(backbone=backbone, head=head, features=256)
    config = replace(config, model=model)
    whole = LoneWorker(config)
    assert np.isfinite([whole.step(), whole.step()]).all()
    folder = tmp_path / "step_2"
    folder.mkdir()
    provenance = checkpoint.provenance_of(config, whole.labels, {}, {})
    checkpoint.save(folder, checkpoint.content_of(whole.state), provenance)
    whole.step()
    monkeypatch.setattr(LoneWorker, "batches_of_noise", rest_of(LoneWorker.batches_of_noise, 2))
    resumed = LoneWorker(config, source=folder)
    resumed.step()
    after, again = whole.tensors(), resumed.tensors()
    assert any(name.startswith("now.cost.") for name in after)
    assert [name for name, value in after.items() if not torch.equal(value, again[name])] == []
    image = np.full((48, 48, 3), 90, np.uint8)
    (ids,) = LSeg.load(folder).predict(image, ["sky", "road", "wall"])
    assert ids.shape == (48, 48)

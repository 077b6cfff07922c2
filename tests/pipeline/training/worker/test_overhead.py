"""What the loop does besides its steps is counted by name, host synchronisations above all."""

import sys
from types import SimpleNamespace

import pytest
import torch

from pipeline.training.worker import loop
from pipeline.training.worker.overhead import Overhead
from tests.support.lone_worker import LoneWorker, process_group  # noqa: F401


def test_a_step_waits_for_its_device_as_often_as_the_loop_says(
    process_group,  # noqa: F811
    mini_shards,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(loop, "Saver", lambda *_: SimpleNamespace(news=0))
    worker = LoneWorker(mini_shards.config(tmp_path, "syncs", log_every=1000, clip_norm=1.0))
    worker.step()  # The first figure of the watch is of step 0.
    worker.loop.overhead.metrics(1)
    waits = []
    # On a GPU each of these waits for it, and torch calls them for conditions and formats too.
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        plain = getattr(torch.Tensor, name)

        def noted(self, *given, plain=plain, name=name):
            # The tables of the upsampling lie on the host, on a GPU too.
            if not sys._getframe(1).f_code.co_filename.endswith("model/upsampling.py"):
                waits.append(name)
            return plain(self, *given)

        monkeypatch.setattr(torch.Tensor, name, noted)
    worker.step()
    counted = worker.loop.overhead.syncs
    assert dict(counted) == {"gradient norm": 1, "sums of the step": 1}
    assert len(waits) == counted.total(), waits
    assert worker.loop.overhead.metrics(2)["train/host_syncs"] == 2


def test_times_are_told_by_name_and_then_start_anew(monkeypatch):
    overhead = Overhead(step=10)
    for _ in range(2):
        with overhead.spent("train/validation_s"):
            pass
    overhead.seconds["train/validation_s"] = 3.0
    assert overhead.read("loss", torch.tensor(0.5)) == 0.5
    assert overhead.metrics(14) == {"train/validation_s": 3.0, "train/host_syncs": 0.25}
    assert overhead.metrics(15) == {"train/host_syncs": 0.0}
    with pytest.raises(KeyError), overhead.spent("train/checkpoint_s"):
        raise KeyError
    assert overhead.metrics(16)["train/checkpoint_s"] >= 0

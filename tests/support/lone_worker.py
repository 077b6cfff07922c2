"""The training loop of one worker without Ray Train around it: step by step, in this process."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train
import torch
from torch import Tensor
from torch import distributed as dist

from model.text import build_text_encoder
from pipeline.data.ingest.stream import Timed, build_mixture, open_corpus
from pipeline.training.config import TrainMixConfig
from pipeline.training.job import Job
from pipeline.training.plan import RunPlan
from pipeline.training.questions.labels import training_labels
from pipeline.training.saving import checkpoint
from pipeline.training.state.state import build_state
from pipeline.training.worker import loop
from pipeline.training.worker.device_batches import on_device

CPU = torch.device("cpu")


@pytest.fixture
def process_group(tmp_path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class LoneWorker:
    """A real `Loop` on batches made here, some of which are poisoned.

    Args:
        config: The run.
        poisoned: Steps whose pictures become NaN.
        source: The checkpoint to go on from.
        stop: Tells why to stop.
    """

    def __init__(
        self,
        config: TrainMixConfig,
        poisoned: Collection[int] = (),
        source: Path | None = None,
        stop: Any = None,
    ) -> None:
        corpus = open_corpus(config.data.shards, "train")
        mixture = build_mixture(corpus, config.data, config.train.batch_size, config.run.seed)
        labels = training_labels(corpus.manifests.values(), "present", corpus.taxonomy)
        encoder = build_text_encoder(config.model.text)
        self.state = build_state(config, encoder.dim, CPU)
        if source is not None:
            checkpoint.restore(ray.train.Checkpoint.from_directory(source), self.state, CPU)
        job = Job(RunPlan(config, corpus, mixture, labels, None))
        lseg = self.state.lseg
        self.loop = loop.Loop(job, self.state, lseg, encoder, CPU, None, stop)
        self.config, self.labels = config, labels
        self.batches = Timed(on_device(self.batches_of_noise(), CPU))

        def poison(_: object, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
            return (args[0] * float("nan"), args[1]) if self.state.step in poisoned else None

        lseg.register_forward_pre_hook(poison)

    def blocks_of_ray(self) -> Iterator[dict]:
        """The batches as Ray hands them over: each a block of one row."""
        for batch in self.batches_of_noise():
            block = {name: column[None] for name, column in batch.items()}
            yield block | {
                "bad": block["bad"].view(np.uint8),
                "problems": np.array([json.dumps([""] * len(batch["t"]))], object),
                "node": np.array(["node"], object),
            }

    def batches_of_noise(self) -> Iterator[dict]:
        """The batches of the stream, with noise for pictures."""
        rng, count = np.random.default_rng(0), self.config.train.batch_size
        side = self.config.data.augment.crop_px
        t = self.state.step * count
        while True:
            image = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
            label = rng.integers(0, 200, (count, side, side), dtype=np.uint8)
            yield {
                "image": image,
                "label": label,
                "t": t + np.arange(count),
                "crc32": np.zeros(count, np.int64),
                "bad": np.zeros(count, bool),
            }
            t += count

    def step(self) -> float:
        """One step; the norm of its gradients."""
        return self.loop.step(self.batches)[1]

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the weights, the batch-norm statistics, the average and the momentum."""
        average = self.state.average
        assert average
        found = {f"now.{k}": v for k, v in self.state.lseg.state_dict().items()}
        found |= {f"average.{k}": v for k, v in average.state_dict().items()}
        for number, values in self.state.optimizer.state_dict()["state"].items():
            found[f"momentum.{number}"] = values["momentum_buffer"]
        # How many batches a norm has seen is counted, and used by nothing.
        return {k: v.clone() for k, v in found.items() if not k.endswith("batches_tracked")}


def rest_of(batches, count):
    """The batches of noise without the first ones, which were drawn before the checkpoint."""

    def without(worker):
        found = batches(worker)
        rows = worker.state.step * worker.config.train.batch_size
        for _ in range(count):
            next(found)
        for batch in found:
            yield batch | {"t": batch["t"] - batch["t"][0] + rows}
            rows += worker.config.train.batch_size

    return without

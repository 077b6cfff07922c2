"""The training stream as Ray Train asks for it: one for each node, split among its workers.

Ray reads this module, and the run's plan, in its controller and in the process that manages the
data. Neither trains, so these modules do without timm and MLflow, and without torch, which Ray
itself reads in the controller alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from pipeline.data.ingest.share import NodeShare, batches_per_block
from pipeline.data.ingest.stream import node_stream
from pipeline.ray_internals import shut_down_together, split_on_node
from pipeline.storage.retry import retry
from pipeline.training.config import TrainMixConfig
from pipeline.training.driver.loaders import loaders_of
from pipeline.training.plan import RunPlan
from pipeline.training.saving import snapshot


@dataclass(frozen=True)
class RemainingRows:
    """The rows of the stream that the newest checkpoint has not used."""

    plan: RunPlan
    start: int
    stop: int


def remaining_rows(plan: RunPlan) -> RemainingRows:
    """Asks for the newest checkpoint; Ray Train calls this whenever workers start anew."""
    config, size = plan.config, plan.config.train.batch_size
    start = patient_latest_step(config) * size
    return RemainingRows(plan, start, max(config.train.steps * size, start))


class StreamDealer(ray.train.DataConfig):
    """Gives each node of the training a stream of its own, dealt to its workers strictly in turn.

    Ray's own configuration splits one stream among all workers, wherever its blocks were made, and
    cuts off what does not divide among them.
    """

    def configure(
        self,
        datasets: Mapping[str, Any],
        world_size: int,
        worker_handles: Any = None,
        worker_node_ids: Sequence[str] | None = None,
        **_: Any,
    ) -> list[dict[str, Any]]:
        """One iterator of each `RemainingRows` for each worker, by the worker's rank."""
        assert worker_node_ids is not None
        output: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, rows in datasets.items():
            first_ones = []
            for node, workers in workers_by_node(worker_node_ids).items():
                parts = _node_parts(rows, world_size, node, workers)
                first_ones.append(parts[0])
                for worker, part in zip(workers, parts, strict=True):
                    output[worker][name] = part
            shut_down_together(first_ones[0], first_ones[1:])
        return output


def workers_by_node(nodes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The ranks of the workers on each node, in ascending order; rank 0's node comes first."""
    return {
        node: tuple(rank for rank, place in enumerate(nodes) if place == node)
        for node in dict.fromkeys(nodes)
    }


def _node_parts(
    remaining: RemainingRows, world_size: int, node: str, workers: tuple[int, ...]
) -> list[Any]:
    plan, config = remaining.plan, remaining.plan.config
    rows = config.rows_per_pass
    share = NodeShare(
        start=remaining.start,
        stop=remaining.stop,
        rows_per_batch=rows,
        batches_per_block=batches_per_block(rows, config.data.augment.crop_px),
        num_workers=world_size,
        workers=workers,
    )
    loaders = loaders_of(config.data, config.cluster, _cpus_of(node), len(workers))
    stream = node_stream(plan.corpus, plan.mixture, config.data, share, *loaders, node)
    return split_on_node(stream, len(workers), node)


def _cpus_of(node: str) -> float:
    found = (each["Resources"] for each in ray.nodes() if each["NodeID"] == node)
    return next(found, {}).get("CPU", 0.0)


def patient_latest_step(config: TrainMixConfig) -> int:
    """Steps of the newest checkpoint, asked again for `train.storage_patience_s` on failure.

    Ray's controller asks it when workers start anew, and does not recover from an error.
    """
    return retry(
        lambda: snapshot.latest_step(config.run),
        config.train.storage_patience_s,
        "run.storage does not answer",
    )

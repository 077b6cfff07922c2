"""The training stream as Ray Train asks for it, and its split among the workers."""

from typing import Any

import ray.data
import ray.train

from pipeline.data.ingest.stream import training_stream
from pipeline.ray_internals import execution_options_of
from pipeline.storage.retry import retry
from pipeline.training.config import TrainMixConfig
from pipeline.training.plan import RunPlan
from pipeline.training.saving import snapshot


class StreamDealer(ray.train.DataConfig):
    """Deals the blocks of the stream to the workers strictly in turn, however many there are.

    Ray's own configuration also cuts off what does not divide among them.
    """

    def configure(
        self, datasets: Any, world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """One iterator of each dataset for each worker."""
        output: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            dataset.context.execution_options = execution_options_of(self, name)
            for worker, part in enumerate(dataset.streaming_split(world_size, equal=False)):
                output[worker][name] = part
        return output


def remaining_stream(plan: RunPlan) -> ray.data.Dataset:
    """The rows of the stream that the newest checkpoint has not used."""
    config, size = plan.config, plan.config.train.batch_size
    start = patient_latest_step(config) * size
    stop = max(config.train.steps * size, start)
    return training_stream(
        plan.corpus, plan.mixture, config.data, config.rows_per_pass, start, stop
    )


def patient_latest_step(config: TrainMixConfig) -> int:
    """Steps of the newest checkpoint, asked again for `train.storage_patience_s` on failure.

    Ray's controller asks it when workers start anew, and does not recover from an error.
    """
    return retry(
        lambda: snapshot.latest_step(config.run),
        config.train.storage_patience_s,
        "run.storage does not answer",
    )

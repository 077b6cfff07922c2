"""How many loaders a node runs, and what they hold of its CPUs."""

import math

from pipeline.data.ingest.config import DataConfig
from pipeline.training.config import ClusterConfig

MOST_A_WORKER = 8
"""Loaders for each worker of a node that `auto` takes at most: more than the fastest GPU needs."""


def loaders_of(
    data: DataConfig, cluster: ClusterConfig, node_cpus: float, workers: int
) -> tuple[int, float]:
    """Loaders of a node, and the logical CPUs that each holds.

    What a node cannot give is not asked of Ray, which would wait for it for ever.

    Args:
        data: `num_loaders`, `loader_cpus` and `loader_threads`.
        cluster: What a worker holds.
        node_cpus: Logical CPUs of the node.
        workers: Workers on it.
    """
    free = max(0.0, node_cpus - workers * cluster.cpus_per_worker)
    if data.num_loaders == "auto":
        count = min(int(free // data.loader_threads), workers * MOST_A_WORKER)
        # They share what one would hold, so that other work still finds a place on the node.
        count, held = max(1, count), data.loader_cpus
    else:
        count, held = data.num_loaders, data.num_loaders * data.loader_cpus
    # Ray counts resources in units of 1/10000.
    return count, math.floor(min(held, free) / count * 1e4) / 1e4

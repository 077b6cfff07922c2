import pytest

from pipeline.data.ingest.config import DataConfig
from pipeline.training.config import ClusterConfig
from pipeline.training.driver.loaders import loaders_of


@pytest.mark.parametrize(
    ("num_loaders", "cpus_per_worker", "node_cpus", "workers", "expected"),
    [
        ("auto", 1.0, 8.0, 1, (3, 0.1666)),  # Seven CPUs for threads; 0.5 held by all three.
        ("auto", 1.0, 192.0, 8, (64, 0.0078)),  # More than GPUs need, were it not bounded.
        ("auto", 1.0, 2.0, 1, (1, 0.5)),
        ("auto", 2.0, 2.0, 1, (1, 0.0)),  # Workers hold all: Ray would wait for ever for more.
        (4, 1.0, 8.0, 1, (4, 0.5)),
        (4, 2.0, 3.0, 1, (4, 0.25)),
        (16, 8.0, 8.0, 1, (16, 0.0)),
        (2, 1.0, 0.0, 1, (2, 0.0)),
    ],
)
def test_loaders_take_what_the_workers_leave(
    num_loaders, cpus_per_worker, node_cpus, workers, expected
):
    data = DataConfig(num_loaders=num_loaders, loader_cpus=0.5, loader_threads=2)
    cluster = ClusterConfig(cpus_per_worker=cpus_per_worker)
    assert loaders_of(data, cluster, node_cpus, workers) == expected


def test_loaders_that_ray_cannot_count_are_not_rounded_up():
    data, cluster = DataConfig(num_loaders=3, loader_cpus=1.0), ClusterConfig()
    count, cpus = loaders_of(data, cluster, 2.0, 1)
    assert count * cpus <= 1.0

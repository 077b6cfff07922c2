"""Bad samples are counted, told with their reason, and end a run that has too many."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import distributed as dist

from pipeline.training.worker.bad_samples import BadSamples

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def alone(tmp_path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batch(num_bad: int, rows: int = 20) -> dict[str, np.ndarray]:
    problems = [f"shard a, key {i}: torn" if i < num_bad else "" for i in range(rows)]
    bad = np.array([bool(problem) for problem in problems])
    return {"t": np.arange(rows), "bad": bad, "problem": np.array(problems, dtype=object)}


@pytest.mark.parametrize(
    ("max_share", "num_bad", "ends"),
    [
        (0.1, 3, False),
        (0.1, 4, False),
        (0.1, 5, True),
        (0.01, 3, False),  # So few say nothing about the share.
        (0.01, 4, True),
        (0.0, 0, False),
        (0.0, 1, True),
        (1.0, 20, False),
    ],
)
def test_the_run_ends_when_too_many_samples_are_bad(max_share, num_bad, ends, caplog):
    bad = BadSamples(max_share)
    with caplog.at_level(logging.WARNING):
        bad.add(batch(num_bad))
    bad.add(batch(0))
    found, problem = bad.totals(CPU, lambda _, counts: counts.tolist())
    assert found == num_bad == len(caplog.messages)
    assert bool(problem) == ends
    if ends:
        assert f"data.max_bad_share={max_share}: {num_bad} of 40 samples" in problem
        assert f"key {num_bad - 1}: torn" in problem
        assert "shard a, key 0: torn" in caplog.messages[0]

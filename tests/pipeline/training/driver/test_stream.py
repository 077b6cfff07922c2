"""The streams that Ray Train asks for, on a real Ray."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import ray

from pipeline.data.ingest.stream import batches_of
from pipeline.training.driver.stream import StreamDealer, remaining_rows, workers_by_node
from pipeline.training.plan import make_plan


def test_processes_that_manage_data_or_workers_read_no_torch():
    """What Ray unpickles there: the stream's plan, and the callback that reports failures."""
    ours = "pipeline.training.driver.stream, pipeline.training.driver.failures"
    heavy = ("torch", "timm", "torchvision", "open_clip", "mlflow")
    code = f"import sys, {ours}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_ranks_are_grouped_by_node_in_order():
    assert workers_by_node(["b", "a", "b", "c", "a"]) == {"b": (0, 2), "a": (1, 4), "c": (3,)}


def test_each_worker_gets_its_rows_made_on_its_own_node(mini_shards, local_ray, tmp_path):
    config = mini_shards.config(tmp_path, "dealt", num_workers=2, steps=7, batch_size=4)
    rows = remaining_rows(make_plan(config))
    assert (rows.start, rows.stop) == (0, 28)
    here = ray.get_runtime_context().get_node_id()
    parts = StreamDealer().configure({"train": rows}, 2, None, [here, here])
    with ThreadPoolExecutor(2) as pool:
        taken = list(pool.map(lambda part: list(batches_of(part["train"], 2)), parts))
    for rank, found in enumerate(taken):
        expected = [[t, t + 1] for t in range(2 * rank, 28, 4)]
        assert [batch["t"].tolist() for batch in found] == expected
        assert {batch["node"] for batch in found} == {here}
        # Views of Ray's memory: nothing was copied on the way.
        assert not any(batch["image"].flags.writeable for batch in found)

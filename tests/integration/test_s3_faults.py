"""A recipe trained through a real S3 server whose network fails gives the model that it should."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs.local_s3 import local_s3
from pipeline.storage.open import open_storage
from tests.support.fault_proxy import fault_proxy
from tests.support.mini_shards import MiniShards

pytestmark = [
    # A real server and two whole runs of the command, one with pauses before requests are repeated.
    pytest.mark.long,
]

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 12


def train(endpoint: str, name: str, cache: Path, tracking: str) -> None:
    command = [sys.executable, str(REPOSITORY / "jobs/train_mix.py")]
    command += ["--config", str(REPOSITORY / "jobs/recipes/demo.yaml")]
    command += ["--data.shards=s3://lseg/shards", "--run.storage=s3://lseg/runs"]
    command += [f"--run.name={name}", f"--tracking.uri={tracking}", f"--train.steps={STEPS}"]
    command += ["--train.warmup_steps=2", "--train.checkpoint_every=6", "--train.log_every=6"]
    command += ["--cluster.num_workers=1", "--model.backbone.kwargs.depth=4"]
    command += ["--train.distractors.count=0", f"--data.cache_dir={cache}"]
    command += ["--data.num_loaders=2"]  # Which share the cache.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "AWS_ENDPOINT_URL": endpoint}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=cache.parent
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def folder(name: str) -> str:
    """The last checkpoint of a run."""
    return f"s3://lseg/runs/{name}/step_{STEPS:08d}"


def digest(name: str, into: Path) -> str:
    """Of the trained weights, to the last bit."""
    storage = open_storage(folder(name))
    path = into / f"{name}.safetensors"
    path.write_bytes(storage.read("model.safetensors"))
    found = hashlib.sha256()
    for key, value in sorted(load_file(path).items()):
        found.update(key.encode() + value.numpy().tobytes())
    return found.hexdigest()


def test_training_through_faults_gives_the_same_weights(mini_shards: MiniShards, tmp_path):
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with local_s3(tmp_path / "s3", ("lseg",)) as direct:
        storage = open_storage("s3://lseg/shards")
        for path in mini_shards.folder.rglob("*.*"):
            storage.upload(str(path.relative_to(mini_shards.folder)), path)
        train(direct, "undisturbed", tmp_path / "cache-1", tracking)
        with fault_proxy(direct, seed=5) as proxy:
            train(proxy.endpoint, "faulty", tmp_path / "cache-2", tracking)
        names = ("undisturbed", "faulty")
        digests = [digest(name, tmp_path) for name in names]
        orders = [open_storage(folder(name)).read("order.txt") for name in names]
    requests, faults = sum(proxy.requests.values()), sum(proxy.faults.values())
    print(json.dumps({"requests": requests, "faults": dict(proxy.faults), "digests": digests}))
    assert orders[0].count(b"\n") == STEPS
    assert orders[0] == orders[1]
    assert digests[0] == digests[1]
    assert requests > 60
    assert faults >= 0.05 * requests
    shards = list((tmp_path / "cache-2").glob("*.tar"))
    assert shards  # And the cache was at work, with nothing but verified copies.
    for path in shards:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem

"""A conversion from S3 to S3 through a network that fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np
import pytest

from jobs.local_s3 import local_s3
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.fault_proxy import SHARES, fault_proxy
from tests.support.tiny_roots import encode, write_ade20k, write_cityscapes

pytestmark = [
    # A real server, two runs of the command, and hundreds of pauses before requests are repeated.
    pytest.mark.long,
]

REPOSITORY = Path(__file__).resolve().parents[2]


def contents(storage: Storage) -> dict[str, bytes]:
    return {entry.path: storage.read(entry.path) for entry in storage.list()}


def convert(endpoint: str, out: str, log: Path) -> str:
    command = [sys.executable, str(REPOSITORY / "jobs/prepare_shards.py"), "--workers=4"]
    command += ["--roots.cityscapes=s3://lseg/raw/city", "--roots.ade20k=s3://lseg/raw/ade"]
    command += [f"--out={out}", "--samples_per_shard=40"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "AWS_ENDPOINT_URL": endpoint}
    with log.open("wb") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
    assert done.returncode == 0, log.read_text()
    return log.read_text()


def test_conversion_through_faults_ends_complete_and_identical(tmp_path):
    write_cityscapes(tmp_path / "raw/city", num_train=120, num_val=10, size=(300, 600))
    # Noise does not compress, so shards are above the size from which several parts are uploaded.
    rng = np.random.default_rng(3)
    for path in (tmp_path / "raw/city/leftImg8bit/train").rglob("*.png"):
        path.write_bytes(encode(rng.integers(0, 256, (300, 600, 3), np.uint8), ".png"))
    write_ade20k(tmp_path / "raw/ade", num_train=200, num_val=20)
    with local_s3(tmp_path / "s3", ("lseg",)) as direct:
        raw = open_storage("s3://lseg")
        for path in (tmp_path / "raw").rglob("*.*"):
            raw.upload(str(path.relative_to(tmp_path)), path)
        convert(direct, "s3://lseg/undisturbed", tmp_path / "undisturbed.log")
        with fault_proxy(direct, seed=11) as proxy:
            text = convert(proxy.endpoint, "s3://lseg/out", tmp_path / "out.log")
        wanted = contents(open_storage("s3://lseg/undisturbed"))
        assert contents(open_storage("s3://lseg/out")) == wanted
        uploads = (
            boto3.Session().client("s3").list_multipart_uploads(Bucket="lseg").get("Uploads", [])
        )
        assert uploads == []
    manifests = [path for path in wanted if path.endswith("manifest.json")]
    assert len(manifests) == 4
    for path in manifests:
        assert json.loads(wanted[path])["left_out"] == []
    assert re.search(r"all\s+350\s", text)
    # Every kind of fault did happen, about as often as it should.
    total = sum(proxy.requests.values())
    print(f"{total} requests {dict(proxy.requests)}; faults {dict(proxy.faults)}")
    assert total > 2 * 350
    assert proxy.requests["POST"] >= 4  # beginning and end of at least two uploads in parts
    for kind, share in SHARES.items():
        assert proxy.faults[kind] > 0.5 * share * total, kind
    answered_500 = proxy.faults["500"] + proxy.faults["500 afterwards"]
    assert answered_500 > 0.08 * total

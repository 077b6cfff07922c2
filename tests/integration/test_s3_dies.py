"""An S3 server that dies in the middle of a job: one message, and the same command goes on."""

from pathlib import Path

import pytest

from jobs.cli import main
from jobs.predict import BARE, run
from pipeline.inference.config import PredictConfig
from pipeline.storage import s3 as storage_s3
from pipeline.storage.open import open_storage
from tests.support.fault_proxy import fault_proxy
from tests.support.fuzz_models import write_checkpoint
from tests.support.fuzz_pictures import pillow
from tests.support.ray_fixtures import run_command
from tests.support.tiny_roots import noise

# Five dead servers and eleven runs of the job; or, for the others, a Ray and three runs of each.
pytestmark = pytest.mark.long


def predict(folder: Path, out: str) -> int:
    words = [str(folder / "photos"), "--labels=road, sky", f"--checkpoint={folder / 'checkpoint'}"]
    return main(PredictConfig, run, [*words, f"--out={out}"], bare=BARE)


def contents(uri: str) -> dict[str, bytes]:
    storage = open_storage(uri)
    return {entry.path: storage.read(entry.path) for entry in storage.list()}


def test_a_prediction_goes_on_when_the_server_is_back(tmp_path, s3_bucket, monkeypatch, capsys):
    # A dead server is asked for a minute; the pauses are no matter of this test.
    monkeypatch.setattr(storage_s3, "_ATTEMPTS", 1)
    write_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        photo = tmp_path / f"photos/{number}.png"
        photo.write_bytes(pillow(noise(40, 50, number), "RGB", "PNG"))
    assert predict(tmp_path, f"{s3_bucket}/wanted") == 0
    wanted = contents(f"{s3_bucket}/wanted")
    assert len(wanted) > 5
    endpoint = storage_s3.os.environ["AWS_ENDPOINT_URL"]
    for dies_after in (0, 1, 2, 4, len(wanted) - 1):
        out = f"{s3_bucket}/out-{dies_after}"
        with fault_proxy(endpoint, seed=1) as proxy:
            proxy.dies_after = dies_after
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            capsys.readouterr()
            assert predict(tmp_path, out) == 2
            said = capsys.readouterr().err.splitlines()
        assert [line for line in said if line.startswith("error: ")] == said[-1:]
        assert "an answering server" in said[-1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert predict(tmp_path, out) == 0
        assert contents(out) == wanted


@pytest.mark.parametrize(
    "jobs",
    [("prepare", "evaluate", "registry"), ("train",)],
)
def test_jobs_on_ray_go_on_when_the_server_is_back(tmp_path, jobs):
    words = (*jobs, "--points", "1", "--folder", str(tmp_path))
    run_command("tests.integration.s3_dies", *words)

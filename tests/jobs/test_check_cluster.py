"""The check of a cluster, on a small Ray: what it finds, what it leaves, and how it ends."""

import json
import sys

import pytest
from mlflow import MlflowClient

from jobs import check_cluster
from pipeline.storage.open import open_storage

PLAIN = ("--model.text.encoder", "stand-in", "--model.backbone.pretrained", "false")
TWO = ("--cluster.num_workers", "2", "--exchange_mib", "1", "--read_s", "0.5")


def check(monkeypatch, *arguments: object) -> int:
    """The exit code of the command, run in this process on the Ray of the tests."""
    monkeypatch.setattr(sys, "argv", ["check_cluster.py", *map(str, arguments)])
    return int(check_cluster.command())


@pytest.mark.slow  # Two processes that load torch and timm.
def test_a_cluster_that_can_train(local_ray, s3_bucket, tmp_path, monkeypatch, capsys):
    shards, runs = open_storage(f"{s3_bucket}/shards"), open_storage(f"{s3_bucket}/runs")
    for number in range(3):
        shards.write(f"ade20k/train/ade20k-train-{number:06d}.tar", bytes(1 << 20))
    places = ("--data.shards", shards.uri, "--run.storage", runs.uri)
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    places += ("--tracking.uri", tracking, "--data.cache_dir", tmp_path / "cache" / "shards")
    places += ("--data.cache_gib", 0.001)
    assert check(monkeypatch, *PLAIN, *TWO, *places, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["failed"] == 0
    found = {each["check"].split()[0]: each for each in document["checks"]}
    assert found.keys() == {
        *("run.storage", "mlflow", "nodes", "/dev/shm", "cache", "clocks", "weights"),
        *("exchange", "shards"),
    }
    assert {each["status"] for each in document["checks"]} == {"ok"}
    assert found["nodes"]["found"] == "2 workers on 1 nodes"
    assert found["exchange"]["found"].startswith("gloo: ")
    assert found["exchange"]["figures"]["gb_per_s"] > 0
    assert found["exchange"]["figures"]["step_s"] > 0
    assert found["shards"]["figures"]["mb_per_s"] > 0
    assert found["clocks"]["figures"]["skew_s"] < 1
    # Nothing stays.
    assert list(runs.files()) == []
    client = MlflowClient(tracking)
    (experiment,) = [each for each in client.search_experiments() if each.name == "lseg"]
    assert client.search_runs([experiment.experiment_id]) == []


@pytest.mark.slow
def test_every_failure_is_a_line_and_the_exit_code_is_1(
    local_ray, s3_bucket, tmp_path, monkeypatch, capsys
):
    arguments = ("--data.shards", f"{s3_bucket}/none", "--run.storage", "s3://no-such-bucket/runs")
    arguments += ("--tracking.uri", "http://127.0.0.1:9", "--model.backbone.pretrained", "false")
    arguments += ("--model.text.encoder", "ViT-B-32", "--model.text.pretrained", tmp_path / "no.pt")
    open_cache = tmp_path / "open"
    open_cache.mkdir()
    open_cache.chmod(0o777)
    arguments += ("--data.cache_dir", open_cache)
    assert check(monkeypatch, *TWO, *arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = {line.split()[1]: line for line in lines if line.startswith("FAILED ")}
    assert failed.keys() == {"run.storage", "mlflow", "cache", "weights", "shards"}
    assert "no-such-bucket" in failed["run.storage"]
    assert "tracking.uri=http://127.0.0.1:9" in failed["mlflow"]
    assert "this user alone can write to" in failed["cache"]
    assert "no.pt: no such file" in failed["weights"]
    assert "no shard: name the folder" in failed["shards"]
    assert lines[-1] == f"5 of {len(lines) - 1} checks failed"


def test_too_few_gpus_are_a_line_too(local_ray, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    arguments = ("--cluster.use_gpu", "true", "--run.storage", tmp_path / "runs")
    assert check(monkeypatch, *PLAIN, *TWO, *arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["ok", "run.storage"],
        ["remark", "mlflow"],
        ["FAILED", "cluster"],
    ]
    assert "cluster GPUs=0: this job holds 2 at once" in lines[2]
    assert not (tmp_path / "runs").exists()


def test_a_mistake_is_one_line_and_the_exit_code_is_2(monkeypatch, capsys):
    assert check(monkeypatch, "--exchange_mib", "0") == 2
    assert capsys.readouterr().err == "error: exchange_mib=0: must be at least 1: 64 will do\n"
    assert check(monkeypatch, "--read_s", "100") == 2
    assert "read_s=100.0: must be above 0 and at most 60" in capsys.readouterr().err

"""System metrics: MLflow's names, the journal's way, and no end by an outage."""

import time
from types import SimpleNamespace

import pytest

from jobs.cli import parse
from pipeline.errors import UserError
from pipeline.tracking import system
from pipeline.tracking.system import SystemWatch
from pipeline.tracking.tracker import Tracker
from pipeline.training.config import TrainConfig, TrainMixConfig
from tests.pipeline.tracking.recorded import runs_of, spilled


def test_the_names_are_those_of_mlflows_own_monitor():
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    theirs = SystemMetricsMonitor("run", tracking_uri="sqlite://")
    theirs.collect_metrics()
    seen: list[dict[str, float]] = []
    watch = SystemWatch(seen.append, 60)
    watch.close()
    names = {name for name in seen[-1] if "gpu" not in name}
    assert names == {f"system/{name}" for name in theirs.aggregate_metrics() if "gpu" not in name}
    assert 0 < seen[-1]["system/system_memory_usage_percentage"] < 100


def test_samples_are_kept_in_an_outage_at_the_step_of_the_run(dead, tmp_path):
    journal = tmp_path / "tracking-a.jsonl"
    with Tracker.start(dead, run_name="a", spill_path=journal) as tracker:
        tracker.watch_system(0.05)
        tracker.log_metrics({"train/loss": 1.0}, step=7)
        time.sleep(0.3)
        tracker.close(timeout_s=0.1)
    kept = [r for _, r in spilled(journal) if "system/disk_usage_percentage" in r.values]
    assert len(kept) >= 2
    assert kept[-1].step == 7


def test_a_run_of_seconds_has_a_sample_too(sqlite):
    with Tracker.start(sqlite, run_name="a", spill_path=None) as tracker:
        tracker.watch_system(600)
    (run,) = runs_of(sqlite, "a")
    assert "system/cpu_utilization_percentage" in run.data.metrics


def test_a_node_that_hides_its_load_keeps_its_run(dead, monkeypatch, caplog):
    def hidden() -> None:
        raise FileNotFoundError("/proc/net/dev")

    monkeypatch.setattr(system.psutil, "net_io_counters", hidden)
    with Tracker.start(dead, run_name="a", spill_path=None) as tracker:
        tracker.watch_system(5)
        tracker.close(timeout_s=0.1)
    assert "no system metrics: /proc/net/dev" in caplog.text


def test_a_gpu_tells_what_it_can(monkeypatch):
    class NVMLError(Exception):
        pass

    def no_power(_) -> int:
        raise NVMLError("Not Supported")

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=20e9, total=80e9),
        nvmlDeviceGetUtilizationRates=lambda number: SimpleNamespace(gpu=90 + number),
        nvmlDeviceGetPowerUsage=no_power,
    )
    monkeypatch.setattr(system, "gpu_library", lambda: nvml)
    first, second = (gpu() for gpu in system._gpus())
    assert second["utilization_percentage"] == 91
    assert first == {
        "memory_usage_percentage": 25.0,
        "memory_usage_megabytes": 20000.0,
        "utilization_percentage": 90,
    }


def test_a_key_turns_it_off():
    config = parse(TrainMixConfig, ["--train.system_metrics_s", "0"])
    assert config.train.system_metrics_s == 0
    with pytest.raises(UserError, match=r"train\.system_metrics_s=0\.5: must be 1 or more"):
        TrainConfig(system_metrics_s=0.5)

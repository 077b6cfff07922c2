"""The plan for a cluster against the same arithmetic, done by hand."""

from dataclasses import replace

import pytest

from jobs.cli import main
from jobs.train_mix import JobConfig, run
from pipeline.data.ingest.augment import AugmentConfig
from pipeline.data.ingest.config import DataConfig
from pipeline.data.shards.format import find_manifests
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from pipeline.training.config import ClusterConfig, TrainConfig, TrainMixConfig
from pipeline.training.driver.capacity import LOADER_MS, SUSTAINED, Capacity, plan_capacity
from pipeline.training.driver.dry_run import Estimate, finer_than_used
from pipeline.training.driver.hardware import GPUS, HardwareConfig
from tests.support.mini_shards import write_manifests

EIGHT_BY_EIGHT = HardwareConfig(gpu="H100", nodes=8, gpus_per_node=8, network_gbit_s=400)


def planned(
    hardware: HardwareConfig, memory_gib: float = 8.0, data: DataConfig | None = None, **train
) -> Capacity:
    """A network of 300 M parameters and 2.5 TFLOP an image, 4 images a GPU."""
    workers = hardware.num_workers
    given = {"steps": 1000, "batch_size": 4 * workers, **train}
    config = TrainMixConfig(
        data=data or DataConfig(),
        train=TrainConfig(**given),
        cluster=ClusterConfig(num_workers=workers, use_gpu=True),
    )
    estimate = Estimate(config, 300_000_000, 300_000_000, 194, None, memory_gib, 2.5, 0.0)
    return plan_capacity(estimate, hardware)


def test_each_bound_is_that_of_the_data_sheets():
    found = planned(EIGHT_BY_EIGHT)
    compute = 64 * SUSTAINED * 989 / 2.5
    assert found.limits["compute"] == pytest.approx(compute)
    # 96 cores a node, of which 8 workers hold one each.
    assert found.limits["loaders"] == pytest.approx(8 * 88 * 1000 / LOADER_MS)
    assert "S3 requests" not in found.limits  # There are no shards to look at.
    # 1.2 GB in fp32: seven eighths of it twice, over 450 GB/s within and 50 GB/s among the nodes.
    seconds = 2 * 7 / 8 * 1.2 * (1 / (450 * 0.8) + 1 / (50 * 0.8))
    assert found.exchange_s == pytest.approx(seconds)
    assert found.limits["gradients"] == pytest.approx(256 / seconds)
    step_s = 256 / compute
    assert found.images_per_s == pytest.approx(256 / (step_s / 3 + max(2 / 3 * step_s, seconds)))
    assert found.estimate.checkpoint_gb == pytest.approx(2.4)  # Weights and momentum.


def test_an_exchange_that_ends_within_the_backward_pass_costs_nothing():
    one = planned(HardwareConfig(gpu="H100", nodes=1))
    assert one.exchange_s < 2 / 3 * 32 / one.limits["compute"]
    assert one.images_per_s == pytest.approx(one.limits["compute"])
    assert one.first == "compute"
    assert one.warnings() == []
    alone = planned(HardwareConfig(gpu="H100", nodes=1, gpus_per_node=1))
    assert "gradients" not in alone.limits


def test_what_is_short_is_named_with_its_remedy():
    slow = replace(EIGHT_BY_EIGHT, network_gbit_s=20)
    (told,) = (w for w in planned(slow).warnings() if w.startswith("gradients"))
    assert "train.gradient_dtype bf16" in told
    half = planned(slow, gradient_dtype="bf16").limits["gradients"]
    assert half == pytest.approx(2 * planned(slow).limits["gradients"])
    # With several passes a step there are fewer exchanges.
    accumulated = planned(slow, batch_size=4 * 64 * 8, accumulate=8).limits["gradients"]
    assert accumulated == pytest.approx(8 * planned(slow).limits["gradients"])
    few = planned(replace(EIGHT_BY_EIGHT, cpus_per_node=9))
    assert few.first == "loaders"
    assert any("hardware.cpus_per_node" in warning for warning in few.warnings())
    # Where the workers hold all, one loader runs beside them.
    none = planned(replace(EIGHT_BY_EIGHT, cpus_per_node=8))
    assert none.limits["loaders"] == pytest.approx(8 * 1000 / LOADER_MS)
    assert "loaders allow" in "\n".join(none.lines())
    # More cores than the loaders have threads for.
    one = planned(EIGHT_BY_EIGHT, data=DataConfig(num_loaders=1, loader_threads=2))
    assert one.limits["loaders"] == pytest.approx(8 * 2 * 1000 / LOADER_MS)
    assert any("do not fit a H100" in w for w in planned(EIGHT_BY_EIGHT, memory_gib=75).warnings())
    old = planned(HardwareConfig(gpu="T4"))
    assert old.limits["compute"] == pytest.approx(8 * SUSTAINED * 8.1 / 2.5)
    assert "train.precision fp32" in old.warnings()[-1]


def test_every_kind_of_gpu_makes_a_report():
    for name in GPUS:
        text = "\n".join(planned(HardwareConfig(gpu=name)).lines())
        assert f"8 {name}," in text
        assert "GPU-hours" in text


def test_the_job_plans_for_the_machines_and_never_trains_on_them(tmp_path, capsys):
    recipe = ["--config", "jobs/recipes/demo.yaml", "--train.batch_size", "16"]
    machines = ["--hardware.gpu", "A100", "--hardware.nodes", "2"]
    write_manifests(tmp_path, ("ade20k",), "train")
    shards = ["--data.shards", str(tmp_path), "--train.distractors.count", "0"]
    assert main(JobConfig, run, [*recipe, *machines, *shards, "--dry_run", "true"]) == 0
    text = capsys.readouterr().out
    assert "2 node(s) x 8 A100" in text
    assert "S3 requests" not in text  # These shards lie in a folder.
    assert main(JobConfig, run, [*recipe, *machines]) == 2
    assert "hardware: plans without training" in capsys.readouterr().err
    assert main(JobConfig, run, [*recipe, "--hardware.gpu", "A100", "--dry_run", "true"]) == 0
    many = [*recipe, "--hardware.gpu", "A100", "--hardware.nodes", "8", "--dry_run", "true"]
    assert main(JobConfig, run, many) == 2
    told = capsys.readouterr().err
    assert "hardware: 8 node(s) with 8 GPUs have 64 workers" in told
    assert "train.batch_size=16" in told
    assert "finer" not in text  # Pictures of 8 pixels; the recipe uses 160.


def test_shards_that_are_far_finer_than_the_recipe_are_named(tmp_path):
    write_manifests(tmp_path, ("ade20k", "idd"), "train")
    manifests = find_manifests(open_storage(str(tmp_path)), "train")
    for scale, names in ((0.05, ("ade20k", "idd")), (0.2, ())):  # Of 100 px; the pictures have 8.
        augment = AugmentConfig(crop_px=16, base_px=100, scale=(0.01, scale))
        config = TrainMixConfig(data=DataConfig(augment=augment), train=TrainConfig(steps=1))
        assert finer_than_used(config, manifests) == names
    estimate = replace(planned(EIGHT_BY_EIGHT).estimate, finer=("cityscapes", "idd"))
    (line,) = (line for line in estimate.facts() if "finer" in line)
    assert "cityscapes, idd: most images are far finer than 1040 px" in line
    assert line.endswith("--train_long_side 1040")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nodes", 0),
        ("gpus_per_node", 0),
        ("network_gbit_s", 0),
        ("s3_requests_s", float("inf")),
        ("cpus_per_node", -1),
        ("cpus_per_node", float("nan")),
    ],
)
def test_machines_that_do_not_exist_are_refused(key, value):
    with pytest.raises(UserError, match=rf"hardware\.{key}="):
        HardwareConfig(**{key: value})

"""How fast a cluster would train a recipe, and what it would be short of first.

Four things bound the images a second: the GPUs, the exchange of gradients, the loaders and the
object store. Each is computed by itself, from the recipe, the data sheets and a few measured or
assumed constants, which the report prints; nothing here was measured on a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.data.shards.format import Manifest
from pipeline.progress import duration
from pipeline.training.config import TrainMixConfig
from pipeline.training.driver.dry_run import Estimate
from pipeline.training.driver.hardware import HardwareConfig
from pipeline.training.driver.loaders import loaders_of

SUSTAINED = 0.35
"""Share of a GPU's peak that forward and backward sustain, assumed."""
LOADER_MS = 6.9
"""CPU time to load one crop from S3, measured by `tests.benchmarks.ingest`; of one core."""
_NETWORK_SHARE = 0.8
"""Share of a network's nominal rate that the exchange of gradients reaches, assumed."""
_USABLE_MEMORY = 0.92
"""Share of a GPU's memory that is left beside CUDA, NCCL and fragmentation, assumed."""
_FORWARD = 1 / 3
"""Share of a step before the first gradient is there: forward is half as dear as backward."""
_GIB, _GB = 2**30, 10**9


@dataclass(frozen=True)
class Capacity:
    """What a cluster would make of a recipe."""

    estimate: Estimate
    hardware: HardwareConfig
    limits: dict[str, float]
    """Images a second of the whole cluster, by what would be the only bound."""
    images_per_s: float
    """Images a second that are left by all of them together."""
    exchange_s: float
    """Seconds in which the workers exchange the gradients of one step."""
    cached_share: float
    """Share of the reads that the copies on the nodes answer, after the first pass."""

    @property
    def first(self) -> str:
        """What saturates first."""
        return min(self.limits, key=lambda name: self.limits[name])

    def warnings(self) -> list[str]:
        """What to change, most pressing first."""
        found = []
        config, gpu = self.estimate.config, self.hardware.data_sheet
        if self.estimate.memory_gib > gpu.memory_gib * _USABLE_MEMORY:
            found.append(
                f"{self.estimate.memory_gib:.1f} GiB do not fit a {self.hardware.gpu}: raise "
                "train.accumulate, or set model.activation_checkpointing"
            )
        compute = self.limits["compute"]
        remedies = {
            "gradients": "use nodes with a faster network, train.gradient_dtype bf16, or a larger "
            "train.batch_size with train.accumulate",
            "loaders": "give the nodes more CPUs (hardware.cpus_per_node) or fewer GPUs, and the "
            "loaders all of them (data.num_loaders auto)",
            "S3 requests": "raise data.cache_gib, or spread the shards over more prefixes",
            "network for reading": "raise data.cache_gib",
        }
        for name, remedy in remedies.items():
            if name in self.limits and self.limits[name] < compute:
                found.append(
                    f"{name} allow {self.limits[name]:.0f} images/s of the GPUs' {compute:.0f}: "
                    f"{remedy}"
                )
        if gpu.bf16_tflops == 0 and config.train.precision in ("auto", "bf16"):
            found.append(f"a {self.hardware.gpu} has no bf16: set train.precision fp32")
        return found

    def lines(self) -> list[str]:
        """The report, for people."""
        config, hardware = self.estimate.config, self.hardware
        gpu = hardware.data_sheet
        images = config.train.steps * config.train.batch_size
        seconds = (images or 10_000) / self.images_per_s
        whole = "" if images else "each 10 000 images: "
        every_s = config.train.checkpoint_every * config.train.batch_size / self.images_per_s
        notes = {
            "compute": f"{SUSTAINED:.0%} of a peak of {_peak(config, hardware):g} TFLOP/s a GPU",
            "gradients": f"{self.exchange_s * 1000:.1f} ms a step, as if nothing hid them",
            "loaders": f"{_loader_cores(config, hardware):g} cores a node, {LOADER_MS} ms an image",
            "S3 requests": f"{hardware.s3_requests_s:g} a second; copies answer "
            f"{self.cached_share:.0%}",
            "network for reading": f"{hardware.network_gbit_s:g} Gbit/s a node",
        }
        lines = [
            f"hardware        {hardware.nodes} node(s) x {hardware.gpus_per_node} {hardware.gpu}, "
            f"{hardware.cpus:g} CPUs and {hardware.network_gbit_s:g} Gbit/s a node",
            f"GPU memory      {self.estimate.memory_gib:.1f} of {gpu.memory_gib:g} GiB, at "
            f"{config.rows_per_pass} images a forward pass",
            "images/s        of the whole cluster, if each were the only bound:",
        ]
        lines += [
            f"  {name:<21} {rate:>9.0f}   ({notes[name]})" for name, rate in self.limits.items()
        ]
        lines += [
            f"together        {self.images_per_s:.0f} images/s; first to saturate: {self.first}",
            f"time            {whole}{duration(seconds)}, "
            f"{seconds * hardware.num_workers / 3600:.1f} GPU-hours, without validations",
            f"checkpoints     {self.estimate.checkpoint_gb:.1f} GB every {duration(every_s)}",
        ]
        return [*lines, *(f"WARNING         {text}" for text in self.warnings())]


def plan_capacity(
    estimate: Estimate, hardware: HardwareConfig, manifests: Mapping[str, Manifest] | None = None
) -> Capacity:
    """Computes the bounds of a recipe on a cluster.

    Args:
        estimate: The dry run of the recipe with `hardware.num_workers` workers on GPUs.
        hardware: The machines.
        manifests: The training shards, for their sizes; None where no shards are there, and
            reading them is not among the bounds.
    """
    config = estimate.config
    step_images = config.train.batch_size
    compute = hardware.num_workers * SUSTAINED * _peak(config, hardware) / estimate.tflop_per_image
    exchange_s = _exchange_s(estimate, hardware)
    loaders = hardware.nodes * _loader_cores(config, hardware) * 1000 / LOADER_MS
    sample_bytes, cached = _reading(config, manifests)
    limits = {"compute": compute, "loaders": loaders}
    if exchange_s:
        limits["gradients"] = step_images / exchange_s
    if cached < 1:
        limits["S3 requests"] = hardware.s3_requests_s / (1 - cached)
        if sample_bytes:
            network = hardware.nodes * hardware.network_gbit_s * _GB / 8
            limits["network for reading"] = network / (sample_bytes * (1 - cached))
    # The exchange begins with the first gradients of the backward pass, and what outlasts that
    # pass is waited for; data come beside it all.
    step_s = step_images / compute
    step_s = _FORWARD * step_s + max((1 - _FORWARD) * step_s, exchange_s)
    rate = min(step_images / step_s, *(v for name, v in limits.items() if name != "gradients"))
    return Capacity(estimate, hardware, limits, rate, exchange_s, cached)


def _peak(config: TrainMixConfig, hardware: HardwareConfig) -> float:
    """10^12 operations a second of one GPU, in the precision of the run."""
    gpu = hardware.data_sheet
    has_bf16 = gpu.bf16_tflops and config.train.precision in ("auto", "bf16")
    return gpu.bf16_tflops if has_bf16 else gpu.fp32_tflops


def _loader_cores(config: TrainMixConfig, hardware: HardwareConfig) -> float:
    """CPU cores of a node on which its loaders decode: what workers leave, at most one a thread.

    Where the workers leave none, one loader runs beside them.
    """
    workers = hardware.gpus_per_node
    count, _ = loaders_of(config.data, config.cluster, hardware.cpus, workers)
    free = hardware.cpus - workers * config.cluster.cpus_per_worker
    return min(max(free, 1.0), count * config.data.loader_threads)


def _exchange_s(estimate: Estimate, hardware: HardwareConfig) -> float:
    """Seconds in which a ring sums the gradients, first within the nodes and then among them."""
    size = estimate.num_trained * (2 if estimate.config.train.gradient_dtype == "bf16" else 4)

    def ring_s(members: int, bytes_s: float) -> float:
        return 2 * (members - 1) / members * size / (bytes_s * _NETWORK_SHARE)

    within = ring_s(hardware.gpus_per_node, hardware.data_sheet.link_gbyte_s * _GB)
    return within + ring_s(hardware.nodes, hardware.network_gbit_s * _GB / 8)


def _reading(
    config: TrainMixConfig, manifests: Mapping[str, Manifest] | None
) -> tuple[float, float]:
    """Bytes of a sample, 0 if not known, and the share of reads that the copies answer."""
    if manifests is None or "://" not in config.data.shards:  # Each node reads them in place.
        return 0.0, 1.0
    shards = [shard for manifest in manifests.values() for shard in manifest.shards]
    total = sum(shard.size for shard in shards)
    count = sum(len(shard.samples) for shard in shards)
    if not count:
        return 0.0, 0.0
    return total / count, min(1.0, config.data.cache_gib * _GIB / total)

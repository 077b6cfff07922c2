"""What a check asks in the place of a training worker: its GPU, its node, and the exchange."""

import os
import platform
import shutil
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from model.backbone import require_backbone_weights
from model.errors import ModelError
from pipeline.checkpoints.prefetched import use_prefetched
from pipeline.data.shards.cache import ShardCache, default_folder
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from pipeline.training.config import TrainMixConfig
from pipeline.training.worker.gpu_driver import driver_problem, nvidia_driver

_WARM_UP = 2
_ROUNDS = 5
_READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Facts:
    """What a worker sees of its node."""

    node: str
    """Address of the node in the cluster."""
    host: str
    gpu: str
    """Name of the GPU; empty where there is none."""
    gpu_gib: float
    driver: str
    """Version of NVIDIA's driver; empty where there is none."""
    cuda: str
    """The CUDA that torch was built for; empty for a build without."""
    problem: str
    """Why torch cannot use the GPU; empty where it can, or need not."""
    shm_gib: float
    """Size of /dev/shm."""
    cache: str
    """Folder for copies of shards."""
    cache_problem: str
    cache_free_gib: float


class Probe:
    """The actor."""

    def __init__(self, config: TrainMixConfig) -> None:
        self._config = config

    def facts(self) -> Facts:
        """Looks at the node, without changing it."""
        import ray

        name, gib, cuda, problem = _gpu() if self._config.cluster.use_gpu else ("", 0.0, "", "")
        driver = nvidia_driver() if self._config.cluster.use_gpu else ""
        folder = Path(self._config.data.cache_dir or default_folder())
        cache_problem = ""
        if self._config.data.cache_gib and "://" in self._config.data.shards:
            try:
                ShardCache(folder, 1)
            except UserError as error:
                cache_problem = str(error)
        at = next(each for each in (folder, *folder.parents) if each.exists())
        return Facts(
            node=ray.util.get_node_ip_address(),
            host=platform.node(),
            gpu=name,
            gpu_gib=gib,
            driver=driver,
            cuda=cuda,
            # The driver explains what fails; where a kernel has run, it is new enough.
            problem=problem and (driver_problem(driver, cuda) or problem),
            shm_gib=shutil.disk_usage("/dev/shm").total / 2**30,
            cache=str(folder),
            cache_problem=cache_problem,
            cache_free_gib=shutil.disk_usage(at).free / 2**30,
        )

    def clock(self) -> float:
        """Returns the time of this node, in seconds since 1970."""
        return time.time()

    def meeting_point(self) -> str:
        """Returns an address at which worker 0 can be met."""
        import ray

        with socket.socket() as sock:
            sock.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{sock.getsockname()[1]}"

    def exchange(self, rank: int, world: int, address: str, mib: int, limit_s: float) -> float:
        """Sums a tensor over all workers as training sums gradients; returns seconds a round."""
        import torch
        import torch.distributed as dist

        use_gpu = self._config.cluster.use_gpu
        device = torch.device("cuda" if use_gpu else "cpu")
        limit = timedelta(seconds=limit_s)
        backend = "nccl" if use_gpu else "gloo"
        dist.init_process_group(
            backend, init_method=address, rank=rank, world_size=world, timeout=limit
        )
        try:
            values = torch.ones(mib * 2**18, device=device)
            for number in range(_WARM_UP + _ROUNDS):
                if number == _WARM_UP:
                    began = self._now(device)
                values.fill_(1.0)
                dist.all_reduce(values)
            seconds = (self._now(device) - began) / _ROUNDS
            if not torch.all(values == world):
                raise RuntimeError(f"the sum of {world} ones is {values.min().item()}")
            return seconds
        finally:
            dist.destroy_process_group()

    def _now(self, device) -> float:
        import torch

        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    def read(self, files: list[tuple[str, int]], seconds: float) -> tuple[int, float]:
        """Reads shards in parts for a while; returns bytes and seconds."""
        storage = open_storage(self._config.data.shards)
        began, total = time.monotonic(), 0
        for path, size in files:
            for offset in range(0, size, _READ_BYTES):
                total += len(storage.read_range(path, offset, min(_READ_BYTES, size - offset)))
                if time.monotonic() - began > seconds:
                    return total, time.monotonic() - began
        return total, time.monotonic() - began

    def weights(self) -> str:
        """Says what is missing of the published weights; empty where they are within reach."""
        from model.text import require_text_weights

        model = self._config.model
        try:
            use_prefetched()
            if model.backbone.pretrained:
                require_backbone_weights(model.backbone)
            require_text_weights(model.text)
        except (UserError, ModelError) as error:
            return str(error)
        return ""


def _gpu() -> tuple[str, float, str, str]:
    """Name, GiB, the CUDA of torch, and why it cannot be used."""
    import torch

    cuda = torch.version.cuda or ""
    if not cuda:
        return "", 0.0, "", f"torch {torch.__version__} is built without CUDA"
    try:
        properties = torch.cuda.get_device_properties(0)
        torch.zeros(1, device="cuda").add_(1).item()
    # torch raises several kinds over a driver that is too old or a GPU that hangs.
    except Exception as error:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        reason = " ".join(str(error).split())[:200]
        return "", 0.0, cuda, f"{reason} (CUDA_VISIBLE_DEVICES is {visible})"
    return properties.name, properties.total_memory / 2**30, cuda, ""

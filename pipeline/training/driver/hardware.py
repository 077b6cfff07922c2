"""The machines that a dry run can plan for: what is known of them, and what a user says."""

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, by its vendor's data sheet; rates are dense, without sparsity."""

    bf16_tflops: float
    """10^12 floating-point operations a second in bf16; 0 where it has none."""
    fp32_tflops: float
    memory_gib: float
    """What the driver shows of it."""
    link_gbyte_s: float
    """10^9 bytes a second to the other GPUs of its node, in one direction."""


GPUS = {
    "H200": Gpu(989, 67, 140, 450),
    "H100": Gpu(989, 67, 79, 450),
    "A100": Gpu(312, 19.5, 80, 300),
    "L4": Gpu(121, 30.3, 22, 20),
    "T4": Gpu(0, 8.1, 15, 10),
}
"""H100 and H200 are SXM5, the A100 is the one of 80 GB; L4 and T4 are joined by PCI Express."""


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """The machines that a dry run plans for."""

    gpu: Literal["H200", "H100", "A100", "L4", "T4"] | None = None
    """Kind of GPU; without one nothing is planned."""
    nodes: int = 1
    """Machines."""
    gpus_per_node: int = 8
    """GPUs in each of them, each with one training worker."""
    cpus_per_node: float = 0.0
    """CPU cores of each machine; 0: twelve for each GPU."""
    network_gbit_s: float = 100.0
    """Network of each machine, in 10^9 bits a second."""
    s3_requests_s: float = 5500.0
    """Reads a second that the object store answers; S3 promises 5500 below a prefix."""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise UserError(f"hardware.{name}={getattr(self, name)}: must be at least 1")
        for name in ("network_gbit_s", "s3_requests_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(
                    f"hardware.{name}={getattr(self, name)}: must be above 0, and finite"
                )
        if not 0 <= self.cpus_per_node < math.inf:
            raise UserError(
                f"hardware.cpus_per_node={self.cpus_per_node:g}: must be 0 or more, and finite"
            )

    @property
    def data_sheet(self) -> Gpu:
        """What is known of the kind of GPU."""
        assert self.gpu is not None
        return GPUS[self.gpu]

    @property
    def num_workers(self) -> int:
        """Training workers, one for each GPU."""
        return self.nodes * self.gpus_per_node

    @property
    def cpus(self) -> float:
        """CPU cores of each machine."""
        return self.cpus_per_node or 12.0 * self.gpus_per_node

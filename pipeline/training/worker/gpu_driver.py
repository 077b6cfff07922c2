"""Whether NVIDIA's driver of a node is new enough for the CUDA that torch was built for.

NVIDIA's rule of minor versions: a program built for CUDA 13.x runs with every driver from 580 on,
whatever x is (CUDA Compatibility, "Minor Version Compatibility").
"""

import re
import subprocess
from pathlib import Path

from pipeline.errors import UserError

LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""First driver by the major version of CUDA."""

_MODULE = Path("/proc/driver/nvidia/version")


def require_driver() -> None:
    """Refuses a driver that is too old, before torch fails over it on every worker and attempt.

    Raises:
        UserError: It is; names the one that is needed.
    """
    import torch

    # NVIDIA's package for forward compatibility serves an older driver: what works is new enough.
    if torch.cuda.is_available():
        return
    if problem := driver_problem(nvidia_driver(), torch.version.cuda or ""):
        raise UserError(
            f"cluster.use_gpu=true: {problem}: update the driver, or install a torch for its CUDA"
        )


def driver_problem(driver: str, cuda: str) -> str:
    """Says why a driver is too old for a build of torch; empty where it is not, or is unknown."""
    if not driver or not cuda:
        return ""
    least = LEAST_DRIVER.get(int(cuda.split(".")[0]), 0)
    if int(driver.split(".")[0]) >= least:
        return ""
    return f"driver {driver} is too old for torch's CUDA {cuda}, which needs {least} or later"


def nvidia_driver(module: Path = _MODULE) -> str:
    """Returns the version of this node's driver; empty where there is none."""
    try:
        if found := re.search(r"NVRM version:.*?\s(\d+\.[\d.]+)\s", module.read_text()):
            return found[1]
    except OSError:  # Some runtimes of containers hide it.
        pass
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    first = done.stdout.partition("\n")[0].strip()
    return first if done.returncode == 0 and re.fullmatch(r"\d+\.[\d.]+", first) else ""

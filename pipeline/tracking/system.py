"""The load of the node that a run's record is made on, under the names of MLflow's own monitor.

That monitor asks the server at each sample, and ends at the first outage; these values go through
the journal like all others. They are of one node: MLflow's page of a run has room for no more.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

import psutil

from pipeline.ray_internals import gpu_library

logger = logging.getLogger(__name__)

_MB = 1e6


class SystemWatch:
    """Samples at an interval, on a thread of its own."""

    def __init__(self, log: Callable[[dict[str, float]], None], every_s: float) -> None:
        self._log, self._every_s = log, every_s
        self._closing = threading.Event()
        self._network = psutil.net_io_counters()
        self._gpus = _gpus()
        self._thread = threading.Thread(target=self._loop, name="system-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends, after a last sample: a run of seconds has one, too."""
        self._closing.set()
        self._thread.join(timeout=1.0)

    def _loop(self) -> None:
        # Sets the beginning of what the first sample is of, which psutil keeps for each thread.
        psutil.cpu_percent()
        while True:
            closing = self._closing.wait(self._every_s)
            try:
                self._log(self.sample())
            except Exception as error:  # A run does not end because a sensor is broken.
                logger.warning("no more system metrics: %s", error)
                return
            if closing:
                return

    def sample(self) -> dict[str, float]:
        """The load now, by name: `system/cpu_utilization_percentage`, ..."""
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("/"), self._network
        now = psutil.net_io_counters()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MB,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MB,
            "disk_available_megabytes": disk.free / _MB,
            "network_receive_megabytes": (now.bytes_recv - network.bytes_recv) / _MB,
            "network_transmit_megabytes": (now.bytes_sent - network.bytes_sent) / _MB,
        }
        for number, gpu in enumerate(self._gpus):
            values |= {f"gpu_{number}_{name}": value for name, value in gpu().items()}
        return {f"system/{name}": round(value, 1) for name, value in values.items()}


def _gpus() -> list[Callable[[], dict[str, float]]]:
    """A sensor for each GPU of the node; none where there is no driver."""
    try:
        nvml = gpu_library()
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    except Exception as error:
        logger.debug("no metrics of GPUs: %s", error)
        return []
    return [lambda handle=handle: _gpu(nvml, handle) for handle in handles]


def _gpu(nvml: Any, handle: Any) -> dict[str, float]:
    """The load of one GPU; a figure that a card does not give is left out."""
    found: dict[str, float] = {}

    def memory() -> None:
        used = nvml.nvmlDeviceGetMemoryInfo(handle)
        found["memory_usage_percentage"] = used.used / used.total * 100
        found["memory_usage_megabytes"] = used.used / _MB

    def load() -> None:
        found["utilization_percentage"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu

    def power() -> None:
        watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        found["power_usage_watts"] = watts
        limit = nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
        found["power_usage_percentage"] = watts / limit * 100

    for figure in (memory, load, power):
        try:
            figure()
        except nvml.NVMLError as error:
            logger.debug("a GPU does not tell: %s", error)
    return found

"""How far a long job is: a line of log every few seconds, with the rate and the time left."""

import logging
import time

from pipeline import monitoring
from pipeline.errors import printable

logger = logging.getLogger(__name__)


class Progress:
    """Counts what is done and logs it.

    Args:
        total: Items to do.
        unit: What the items are, in the plural.
        every_s: Seconds between two lines; the last item always gets one.
    """

    def __init__(self, total: int, unit: str, every_s: float = 5.0) -> None:
        self._total = total
        self._unit = unit
        self._every_s = every_s
        self._done = 0
        self._began = self._logged = time.monotonic()
        monitoring.ITEMS_PLANNED.set(total, unit=unit)
        monitoring.ITEMS_DONE.start(unit=unit)

    def add(self, count: int, note: str = "") -> None:
        """Counts items as done.

        Args:
            count: How many.
            note: Ends the line, such as the name of what was just finished.
        """
        self._done += count
        monitoring.ITEMS_DONE.add(count, unit=self._unit)
        monitoring.ITEMS_LEFT.set(self._total - self._done, unit=self._unit)
        now = time.monotonic()
        if now - self._logged < self._every_s and self._done < self._total:
            return
        self._logged = now
        rate = self._done / max(now - self._began, 1e-9)
        speed = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
        eta = duration((self._total - self._done) / max(rate, 1e-9))
        logger.info(
            f"{self._done}/{self._total} {self._unit}  {speed} {self._unit}/s  ETA {eta}  "
            + printable(note)
        )


def duration(seconds: float) -> str:
    """Seconds as a person says them: `45s`, `3m20s`, `2h05m`."""
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    return f"{total // 3600}h{total % 3600 // 60:02d}m"

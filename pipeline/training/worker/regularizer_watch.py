"""Whether the spatial regulariser still lets the differences between labels through.

A block that does not, trains nothing (see `model.regularizer`), and the loss alone shows it late:
so its gain is measured before the first step and at intervals, on an image of the batch.
"""

import logging
from typing import Any

from torch import Tensor

from model.lseg import LSeg
from pipeline.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

METRIC = "train/label_spread_gain"
BIAS_METRIC = "train/regularizer_bias"


class RegularizerWatch:
    """Measures the label-spread gain every `interval` steps, where there is a tracker: on rank 0.

    A network without a regulariser is not measured.
    """

    def __init__(self, lseg: LSeg, tracker: Tracker | None, interval: int, amp: Any) -> None:
        self._lseg, self._tracker = lseg, tracker
        self._interval, self._amp = interval, amp
        self._started = self._warned = False

    def look(self, step: int, image_BHWC: Tensor, text_KC: Tensor) -> None:
        """Measures before the first step it sees, and then at every `interval`-th.

        One point in MLflow each; a line of log at the start, and a warning that names the cause
        whenever the block turns out dead that was not. One host synchronisation. Of the images,
        (B, H, W, 3) uint8, the first one is used.
        """
        regularizer = self._lseg.regularizer
        due = not self._started or step % self._interval == 0
        if self._tracker is None or not regularizer.depth or not due:
            return
        with self._amp:
            image = self._lseg.normalize(image_BHWC[:1])
            gain = self._lseg.label_spread_gain(image, text_KC)
        values = {METRIC: gain, BIAS_METRIC: regularizer.lowest_bias()}
        self._tracker.log_metrics(values, step)
        if not self._started:
            logger.info("regularizer: label-spread gain %.2g before step %d", gain, step + 1)
        self._started = True
        warning = regularizer.gain_warning(gain)
        if warning and not self._warned:
            logger.warning("step %d: %s", step, warning)
        self._warned = bool(warning)

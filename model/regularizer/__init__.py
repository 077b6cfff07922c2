"""The spatial regulariser: one kernel over the score map of every label, applied several times."""

from model.regularizer.block import DEAD_GAIN, Regularizer

__all__ = ["DEAD_GAIN", "Regularizer"]

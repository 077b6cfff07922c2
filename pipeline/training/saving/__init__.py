"""Checkpoints of a training: when they are written, and where they are stored."""

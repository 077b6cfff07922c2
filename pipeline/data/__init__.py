"""From official downloads to uint8 batches: numpy and bytes, no torch, no model."""

"""From official downloads to uint8 batches: taxonomy, shards, and the training stream."""

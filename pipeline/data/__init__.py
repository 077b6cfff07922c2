"""The way from official downloads to uint8 batches: taxonomy, shards, the training stream."""

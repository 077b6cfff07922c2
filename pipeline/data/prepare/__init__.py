"""The conversion of datasets to shards."""

"""Shards and their manifests: the format, the label union of several, and the node cache."""

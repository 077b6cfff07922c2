"""Bytes and locks: local directories, S3, archives read in place, and leases on objects."""

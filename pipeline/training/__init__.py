"""Distributed training of LSeg with Ray Train."""

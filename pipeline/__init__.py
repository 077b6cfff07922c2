"""From seven official dataset downloads to trained, tracked LSeg models."""

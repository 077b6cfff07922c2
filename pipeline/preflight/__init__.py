"""What a cluster must be able to do before the first training, tried in a minute."""

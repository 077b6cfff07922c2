"""What runs in the driver of a training: its plan, its start, and its failures."""

"""The training stream: which sample comes when, its augmentation, and its way over Ray."""

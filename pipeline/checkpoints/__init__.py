"""Checkpoint folders: their files, where they are fetched from, and what they say of their past."""

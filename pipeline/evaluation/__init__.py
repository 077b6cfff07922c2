"""Evaluation by published protocols: on any number of workers, resumable, with reports."""

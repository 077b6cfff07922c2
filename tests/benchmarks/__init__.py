"""Benchmarks, run by command, e.g. `python -m tests.benchmarks.train_step`."""

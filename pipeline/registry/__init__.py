"""Versions of a model in the MLflow registry, their aliases, and the locks on them."""

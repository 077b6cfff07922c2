"""The journal of a run, and MLflow behind it."""

"""What MLflow takes: the longest values, the largest calls and the characters of names."""

import re

MAX_PARAM_CHARS = 6000
"""Longest value of a parameter."""
MAX_RUN_TAG_CHARS = 8000
"""Longest value of a run's tag."""
MAX_VERSION_TAG_CHARS = 5000
"""Longest value of a model version's tag that every server takes."""
MAX_ENTITIES = 1000
"""Metrics, parameters and tags together in one call."""
MAX_TEXTS = 100
"""Parameters, and also tags, in one call."""

_BAD_NAME_CHARACTERS = re.compile(r"[^/\w.\- :]")


def name_for_mlflow(name: str) -> str:
    """Replaces the characters that MLflow refuses in the name of a metric, parameter or tag."""
    return _BAD_NAME_CHARACTERS.sub("_", name)

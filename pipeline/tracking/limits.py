"""What MLflow takes: the longest values, the largest calls and the characters of names."""

import hashlib
import re

MAX_PARAM_CHARS = 6000
"""Longest value of a parameter."""
MAX_RUN_TAG_CHARS = 8000
"""Longest value of a run's tag."""
MAX_VERSION_TAG_CHARS = 5000
"""Longest value of a model version's tag that every server takes."""
MAX_EXPERIMENT_CHARS = 500
"""Longest name of an experiment."""
MAX_ENTITIES = 1000
"""Metrics, parameters and tags together in one call."""
MAX_TEXTS = 100
"""Parameters, and also tags, in one call."""

_BAD_NAME_CHARACTERS = re.compile(r"[^/\w.\- :]")


def name_for_mlflow(name: str) -> str:
    """Replaces the characters that MLflow refuses in the name of a metric, parameter or tag."""
    return _BAD_NAME_CHARACTERS.sub("_", name)


def folder_for(experiment: str) -> str:
    """Names the folder of an experiment's artifacts: its own name, where that is a good one."""
    if re.fullmatch(r"\w[\w.\- ]{0,99}", experiment):
        return experiment
    clean = re.sub(r"[^\w.\-]+", "_", experiment).lstrip(".")[:60]
    return f"{clean}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}"

"""What MLflow takes: the longest values, the largest calls, and names that its pages can group."""

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
MAX_PICTURE_BYTES = 256 * 1024
"""Largest file of an image, which the journal keeps whole until MLflow has it."""
MAX_DIGEST_CHARS = 36
"""Longest digest of a dataset."""
MAX_DATASET_CHARS = 500
"""Longest name of a dataset."""

_BAD_NAME_CHARACTERS = re.compile(r"[^/\w.\- :]")


def name_for_mlflow(name: str) -> str:
    """Replaces the characters that MLflow refuses in the name of a metric, parameter or tag."""
    return _BAD_NAME_CHARACTERS.sub("_", name)


def name_of_metric(name: str) -> str:
    """Names a metric as MLflow's page groups it: one section of charts a figure, not a dataset.

    `val/ade20k/miou` becomes `val_miou/ade20k`; all others stay.
    """
    return name_for_mlflow(re.sub(r"^val/([^/]+)/([^/]+)$", r"val_\2/\1", name))


def plain_name_of_metric(name: str) -> str:
    """The inverse of `name_of_metric`: the name in settings, in files and in older runs."""
    return re.sub(r"^val_([^/]+)/([^/]+)$", r"val/\2/\1", name)


def folder_for(experiment: str) -> str:
    """Names the folder of an experiment's artifacts: its own name, where that is a good one."""
    if re.fullmatch(r"\w[\w.\- ]{0,99}", experiment):
        return experiment
    clean = re.sub(r"[^\w.\-]+", "_", experiment).lstrip(".")[:60]
    return f"{clean}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}"

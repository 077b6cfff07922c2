"""What an experiment's page says, and the saved view of its runs with the columns that matter.

MLflow 3.17 keeps a saved view of an experiment's runs (filter, order, columns) as a tag of the
experiment, `mlflow.sharedViewState.KEY`, and opens it by `?viewStateShareKey=KEY`. The tag holds an
envelope whose `state` is JSON; older versions read the same keys beside it. There is no setting for
the columns of the page itself: each browser remembers its own.
"""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from pipeline.ray_internals import SAVED_VIEW_TAG

logger = logging.getLogger(__name__)

NOTE_TAG = "mlflow.note.content"
"""The description of a run or of an experiment, which people edit on MLflow's page."""

_VIEW = "lseg-runs"
_COLUMNS = (
    "metrics.`val/miou`",
    "metrics.`val/pixel_accuracy`",
    "metrics.`train/loss`",
    "metrics.`train/images_per_s`",
    "attributes.`Dataset`",
    "attributes.`Models`",
    "attributes.`Version`",
    "attributes.`Duration`",
)


def describe(client: Any, experiment_id: str, tags: Mapping[str, str]) -> None:
    """Gives an experiment a description and a view of its runs, unless it has a description.

    Only a comfort: what a server refuses of it is left out.
    """
    if NOTE_TAG in tags:
        return
    order = _COLUMNS[0]
    state = {"orderByKey": order, "orderByAsc": False, "selectedColumns": list(_COLUMNS)}
    state |= {"searchFilter": "", "datasetsFilter": []}
    link = f"#/experiments/{experiment_id}/runs?viewStateShareKey={_VIEW}"
    note = (
        "Trainings of LSeg, a run each; evaluations of a checkpoint write into the run that made "
        f"it. [The runs by mIoU]({link}&workflowType=machine_learning), with their data, models "
        "and commits.\n\n"
        "To find runs: by data, ``dataset.digest = '<fingerprint>'`` or "
        "``tags.`manifest.<dataset>` = '<fingerprint>'``; by code, "
        "``tags.git_commit = '<commit>'`` or ``tags.source_fingerprint = '<fingerprint>'``; by "
        "checkpoint, ``tags.`checkpoint.best` = '<address>'`` or ``tags.`checkpoint.last` = "
        "'<address>'``.\n"
    )
    try:
        client.set_experiment_tag(experiment_id, SAVED_VIEW_TAG + _VIEW, view("lseg runs", state))
        client.set_experiment_tag(experiment_id, NOTE_TAG, note)
    except Exception as error:
        logger.debug("the experiment gets no description: %s", error)


def view(name: str, state: Mapping[str, Any]) -> str:
    """Makes the tag's value of a saved view."""
    now = int(time.time() * 1000)
    envelope = {"name": name, "createdAt": now, "updatedAt": now}
    return json.dumps({**envelope, "state": json.dumps(state), **state})

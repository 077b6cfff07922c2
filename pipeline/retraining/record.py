"""The record of decisions: the model version's tags, its MLflow run, the decision log.

All three may be written again: a call that was killed while it wrote is followed by one that writes
the same.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from pipeline.retraining.state import DECISIONS
from pipeline.storage.base import Storage
from pipeline.tracking.limits import MAX_VERSION_TAG_CHARS
from pipeline.tracking.redaction import redact_tree

PREFIX = "retrain."
"""Prefix of the tags of versions and runs that describe a decision."""


class DecisionRecord:
    """Writes decisions about the versions of one registered model, by an `MlflowClient`."""

    def __init__(self, client: Any, name: str, storage: Storage) -> None:
        self._client, self._name, self._storage = client, name, storage

    def write(
        self, key: str, version: str, run_id: str, tags: Mapping[str, str], content: dict[str, Any]
    ) -> None:
        """Writes one decision: tags of a version and of the run that made it, and files.

        `key` names its file in the log and on the run, with all the content. `run_id` is empty
        where none is known. `tags` come without `PREFIX`.
        """
        self.tag_version(version, {PREFIX + tag: value for tag, value in tags.items()})
        if run_id:
            for tag, value in tags.items():
                self._client.set_tag(run_id, PREFIX + tag, value[:MAX_VERSION_TAG_CHARS])
            self._client.log_text(run_id, _text(content), f"retrain/{_file_name(key)}")
        self.log(key, content)

    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a version as they are."""
        for tag, value in tags.items():
            self._client.set_model_version_tag(
                self._name, version, tag, value[:MAX_VERSION_TAG_CHARS]
            )

    def log(self, key: str, content: dict[str, Any]) -> None:
        """Adds a file to the decision log."""
        self._storage.write(f"{DECISIONS}/{_file_name(key)}", _text(content).encode())


def _file_name(key: str) -> str:
    return re.sub(r"[^\w.-]+", "-", key) + ".json"


def _text(content: dict[str, Any]) -> str:
    return json.dumps(redact_tree(content), indent=1, ensure_ascii=False) + "\n"

"""Registers checkpoints in MLflow's model registry, and sets which version is in service.

    python jobs/registry.py
    python jobs/registry.py register runs/mix7/step_00001000 --alias candidate
    python jobs/registry.py promote 3
    python jobs/registry.py promote @candidate
    python jobs/registry.py roll_back
    python jobs/registry.py remove_alias candidate

The server is `--tracking.uri` or MLFLOW_TRACKING_URI, the registered model `--registry.name`. The
champion changes under the lock of `jobs/retrain.py`: the exit code is 75 while another call changes
it (the message says which, since when, until when), 69 where MLflow does not answer, 2 for a
mistake.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main
from pipeline.registry.config import RegistryJobConfig


class _What(argparse.Action):
    """Stores the word after the action in the setting that the action takes."""

    _KEYS = {"register": "checkpoint", "remove_alias": "alias"}  # noqa: RUF012

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        # The configuration itself refuses a version where an action takes none.
        setattr(namespace, self._KEYS.get(namespace.action, "version"), values)


BARE = {"action": {"nargs": "?"}, "what": {"nargs": "?", "action": _What}}


def run(config: RegistryJobConfig) -> None:
    """Changes the registry and prints a line for each version concerned."""
    from pipeline.registry.actions import change_registry, describe

    versions = change_registry(config)
    for version in versions:
        print(describe(version))
    if not versions:
        print(
            f"{config.alias} is given to no version"
            if config.action == "remove_alias"
            else f"{config.registry.name} has no versions"
        )


if __name__ == "__main__":
    sys.exit(main(RegistryJobConfig, run, description=__doc__, bare=BARE))

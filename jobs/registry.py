"""Registers checkpoints in MLflow's model registry, and says which is in service.

    python jobs/registry.py
    python jobs/registry.py register runs/mix7/step_00001000 --alias candidate
    python jobs/registry.py promote 3
    python jobs/registry.py promote @candidate
    python jobs/registry.py roll_back
    python jobs/registry.py remove_alias candidate

The server is `--tracking.uri` or MLFLOW_TRACKING_URI, the registered model `--registry.name`. The
champion changes under the lock of `jobs/retrain.py`: exit code 75 while that one changes it (the
message says who, since when, until when), 69 where MLflow does not answer, 2 for a mistake.
"""

import sys
from itertools import takewhile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main
from pipeline.registry.config import RegistryJobConfig

_SECOND_WORD = {"register": "checkpoint", "promote": "version", "remove_alias": "alias"}


def run(config: RegistryJobConfig) -> None:
    """Does it, and prints a line for each version concerned."""
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


def words_to_options(words: list[str]) -> list[str]:
    """The command line with its leading words, `ACTION [WHAT]`, as options."""
    leading = list(takewhile(lambda word: not word.startswith("-"), words))
    if not leading:
        return words
    action, what, rest = leading[0], leading[1:], words[len(leading) :]
    options = [f"--action={action}"]
    if what:  # Where an action takes none, the configuration says so.
        options.append(f"--{_SECOND_WORD.get(action, 'version')}={what.pop(0)}")
    return [*options, *what, *rest]


if __name__ == "__main__":
    sys.exit(main(RegistryJobConfig, run, words_to_options(sys.argv[1:]), description=__doc__))

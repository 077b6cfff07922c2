"""How a run is found from what it used and made, and what a version's page leads back to.

Each is asked of the MLflow server that this process has set, as a user would in a notebook.
"""

from collections.abc import Iterable, Sequence

import mlflow
from mlflow.entities import DatasetInput, Run
from mlflow.entities.model_registry import ModelVersion

from pipeline.checkpoints.environment import source_fingerprint
from pipeline.training.saving.logged import BEST_TAG, LAST_TAG

TRAINING_PAGE = "workflowType=machine_learning"
"""Without it MLflow opens a page as one of language models, with empty tabs."""


def context_of(given: DatasetInput) -> str:
    """What a run reads a dataset for: `train`, `validation` or `evaluation`."""
    return next(tag.value for tag in given.tags if tag.key == "mlflow.data.context")


def digests_of(run: Run, context: str) -> dict[str, str]:
    """The fingerprints of a run's datasets, by name."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return {e.dataset.name: e.dataset.digest for e in inputs if context_of(e) == context}


def found_by(words: str) -> set[str]:
    """The ids of the runs that a filter finds, in whatever experiment."""
    found = mlflow.search_runs(
        search_all_experiments=True, filter_string=words, output_format="list"
    )
    return {run.info.run_id for run in found}


def searches_of(run: Run, runs: Sequence[Run]) -> dict[str, set[str]]:
    """The filters that an experiment's description names, and the ids of the runs they must find.

    Args:
        run: The run that all of them must find.
        runs: All runs of the server, so that no filter passes by finding everything.
    """
    searches: dict[str, set[str]] = {}
    for context in ("train", "validation"):
        for name, digest in digests_of(run, context).items():
            words = f"dataset.digest = '{digest}' AND dataset.context = '{context}'"
            searches[words] = _ids(e for e in runs if digests_of(e, context).get(name) == digest)
    train = digests_of(run, "train")
    tags = [*(f"manifest.{name}" for name in train), "source_fingerprint", BEST_TAG, LAST_TAG]
    # A job that was submitted without LSEG_GIT_COMMIT runs sources that have no repository.
    if run.data.tags["git_commit"] != "unknown":
        tags.append("git_commit")
    for tag in tags:
        value = run.data.tags[tag]
        searches[f"tags.`{tag}` = '{value}'"] = _ids(
            each for each in runs if each.data.tags.get(tag) == value
        )
    return searches


def not_found(run: Run, runs: Sequence[Run]) -> list[str]:
    """The filters that find other runs than they must, with what they found."""
    wrong = []
    for words, wanted in searches_of(run, runs).items():
        found = found_by(words)
        if run.info.run_id not in wanted or found != wanted:
            wrong.append(f"{words}: {sorted(found)} instead of {sorted(wanted)}")
    return wrong


def not_led_to(version: ModelVersion, run: Run) -> list[str]:
    """What a version's page does not lead to, of its run, data, code, checkpoint and model."""
    page = version.description or ""
    place = f"#/experiments/{run.info.experiment_id}"
    model_id = str(version.source).rpartition("/")[2]
    leads = {
        "the run": f"({place}/runs/{run.info.run_id}?{TRAINING_PAGE})",
        "the logged model": f"({place}/models/{model_id}?{TRAINING_PAGE})",
        "the commit": f"commit `{run.data.tags['git_commit']}`",
        "the sources of this checkout": f"sources `{source_fingerprint()}`",
    }
    leads |= {
        f"the data of {name}": f"{name} `{digest}`"
        for name, digest in digests_of(run, "train").items()
    }
    wrong = [f"{what}, {words}" for what, words in leads.items() if words not in page]
    # A person registers the best one; a re-training compares, and registers, the last one.
    stored = [run.data.tags[tag] for tag in (BEST_TAG, LAST_TAG)]
    if not any(f"checkpoint: `{address}`" in page for address in stored):
        wrong.append(f"its checkpoint, one of {stored}")
    if version.run_id != run.info.run_id:
        wrong.append(f"the run {run.info.run_id}, but {version.run_id}")
    return wrong


def _ids(runs: Iterable[Run]) -> set[str]:
    return {run.info.run_id for run in runs}

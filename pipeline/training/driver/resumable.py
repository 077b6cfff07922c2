"""Checks whether a run may resume from its checkpoint under the settings that are now given.

The network, its label sets and its images must be as they were: otherwise one run would be two, and
its record would describe only the second. Free to change are the length of the
run, rates and decays, precision, accumulation, the workers, the loaders and the cache, and all that
only watches: logging, validation, checkpoints, tracking. Shards may move if they are the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.checkpoints.files import only_manifest_tags, step_folder
from pipeline.checkpoints.provenance import read_provenance
from pipeline.errors import UserError
from pipeline.training.config import TrainMixConfig, plain
from pipeline.training.plan import RunPlan
from pipeline.training.questions.labels import LabelSpace
from pipeline.training.saving.snapshot import address_of, newest_whole, repair
from pipeline.training.state.warm_start import check_start

_FIXED = (
    "run.seed",
    "model",
    "data.weights",
    "data.temperature",
    "data.caps",
    "data.augment",
    "train.batch_size",
    "train.optimizer",
    "train.decay_norms",
    "train.backbone",
    "train.text",
    "train.rates",
    "train.loss",
    "train.label_sets",
    "train.labels_per_step",
    "train.test_fold",
    "train.other",
    "train.distractors",
)
"""Settings, and groups of them, that a run keeps."""
_FREE = ("model.activation_checkpointing",)
"""Settings within `_FIXED` that change no result."""


def first_step(plan: RunPlan) -> int:
    """Steps of the run that are done already, 0 for a new one, after all that could forbid it.

    Raises:
        UserError: The run has checkpoints of other settings, labels or data than the plan, or none
            that is whole; or it is new, and cannot start from `run.start_from`.
    """
    step = repair(plan.config.run) and newest_whole(plan.config.run)
    if step:
        check_resumable(plan.config, plan.labels, plan.manifest_tags, step)
    else:
        check_start(plan.config)
    return step


def check_resumable(
    config: TrainMixConfig, labels: LabelSpace, shards: Mapping[str, str], step: int
) -> None:
    """Refuses to resume a run whose network, labels or data are others than now configured.

    Args:
        config: The configuration of the run.
        labels: The classes that it is to be trained on.
        shards: Tag -> fingerprint of the training shards, as in the provenance of checkpoints.
        step: Steps done in its newest checkpoint.

    Raises:
        UserError: Names every difference.
    """
    before = read_provenance(address_of(config.run, step))
    stored = only_manifest_tags(before.tags)
    saved, now = _completed(before.config, plain(TrainMixConfig())), plain(config)
    found = [d for key in _FIXED for d in _differences(key, _at(saved, key), _at(now, key))]
    found += _differences("train.labels", list(before.labels), list(labels.names))
    if before.labels == labels.names and before.texts:
        pairs = zip(before.texts, labels.texts, strict=True)
        others = [(old, new) for old, new in pairs if old != new]
        found += [f"words for a label ({old!r}, now {new!r})" for old, new in others[:1]]
    if stored:  # A checkpoint from elsewhere may not say.
        found += _differences("data.shards", stored, dict(shards))
    if found:
        raise UserError(
            f"run.name={config.run.name}: {config.run.name}/{step_folder(step)} in "
            f"{config.run.storage} was trained with other {', '.join(found)}: give the run "
            "another name, or restore what differs"
        )


def _completed(tree: Any, defaults: Any) -> Any:
    """Settings that an older program did not know are as if left at their defaults."""
    if not (isinstance(tree, dict) and isinstance(defaults, dict)):
        return tree
    known = {name: _completed(value, defaults.get(name)) for name, value in tree.items()}
    return {**defaults, **known}


def _at(tree: Any, key: str) -> Any:
    """A setting or a group of them."""
    for name in key.split("."):
        tree = tree[name]
    return tree


def _differences(key: str, before: Any, after: Any) -> Iterator[str]:
    """Each setting that differs, with both values."""
    if before == after or key in _FREE:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from _differences(f"{key}.{name}", before.get(name), after.get(name))
    elif key == "train.labels":
        examples = [*(x for x in after if x not in before), *(x for x in before if x not in after)]
        yield f"{key} ({len(before)} of them, now {len(after)}; differing: {examples[:3]})"
    else:
        yield f"{key} ({before!r}, now {after!r})"

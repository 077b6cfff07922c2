"""What a trial was trained and scored with: results of other settings are not taken for its own.

A trial's name comes from what the sweep varies, so that it stays when the sweep grows. It says
nothing of the recipe, the overrides and the evaluation. Those are kept in the trial's result: all
that is not the default, by dotted key. What has no influence on the outcome (where the run lies,
what it runs on) is left out, so that a sweep can resume elsewhere.
"""

import json
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.sweep import results
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.trials import Trial
from pipeline.tracking.redaction import leaves
from pipeline.training.config import RunConfig, TrainMixConfig, plain
from pipeline.training.saving import snapshot

logger = logging.getLogger(__name__)

_WITHOUT_INFLUENCE = (
    "run.name",
    "run.storage",
    "tracking.",
    "cluster.",
    "data.num_loaders",
    "data.loader_",
    "data.cache_",
    "train.log_every",
    "train.system_metrics_s",
    "train.keep_checkpoints",
    "train.storage_patience_s",
    "model.activation_checkpointing",
    "evaluate.workers.",
)
_SHOWN = 3
"""Differing settings that a message names."""


def settings_of(config: SweepConfig, training: TrainMixConfig) -> dict[str, Any]:
    """What a trial's outcome depends on and is not the default, by dotted key; fit for JSON."""
    found = dict(leaves(plain(training)))
    for key, value in json.loads(json.dumps(config.evaluate, default=str)).items():
        found |= leaves(value, f"evaluate.{key}")
    kept = {
        key: value
        for key, value in sorted(found.items())
        if not key.startswith(_WITHOUT_INFLUENCE) and (key, value) not in _defaults().items()
    }
    if not training.train.sync_batchnorm:  # Each worker's share then has statistics of its own.
        kept["cluster.num_workers"] = training.cluster.num_workers
    return kept


def check_settings(
    config: SweepConfig,
    trials: Sequence[Trial],
    training: Callable[[Trial], TrainMixConfig],
    storage: Storage,
    *,
    repair: bool = True,
) -> None:
    """Makes sure that what earlier starts left is of the settings that this one has.

    A trial that failed before its first checkpoint may have had others: it is trained anew.
    `trials` are those of a grid; with none, as in the other kinds of search, all results count.
    `repair` repairs what a full disk left, as the training does; only the process that holds the
    sweep's lease may do so.

    Raises:
        UserError: A result or a checkpoint is of other settings; names them.
    """
    found = results.read_all(storage)
    trials = trials or [Trial(result.params, result.seed) for result in found.values()]
    unknown = []
    for trial in trials:
        result, what = found.get(trial.name), "result"
        if result is None or not result.is_done:
            run = RunConfig(name=trial.name, storage=storage.uri)
            if repair:
                snapshot.repair(run)
            try:
                step = snapshot.latest_step(run)
            except ValueError:
                if repair:
                    raise
                step = 0  # Perhaps it is being written at this moment.
            if not step:
                continue
            what = f"checkpoint of step {step}"
        if result is None:
            raise UserError(
                f"name={config.name}: {storage.uri}/{trial.name} holds a {what}, but its result, "
                "which would say with what settings, is gone: delete that folder, or give the "
                "sweep another name or storage"
            )
        if not result.settings:
            unknown.append(trial.name)
        elif other := _differences(result.settings, settings_of(config, training(trial))):
            raise UserError(
                f"name={config.name}: {storage.uri} holds the {what} of trial {trial.name} with "
                f"other settings ({other}): give the sweep another name or storage, restore the "
                "settings, or delete that folder"
            )
    if unknown:
        logger.warning(
            "%d results, such as %s, are of a version that did not keep their settings: they are "
            "taken to be of the present ones",
            len(unknown),
            unknown[0],
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that differ, in words; empty where none does."""
    before, now = ({**_defaults(), **settings} for settings in (before, now))
    words = [
        f"{key} {json.dumps(old)}, now {json.dumps(new)}"
        for key in sorted(before.keys() | now.keys())
        if (old := before.get(key, "nothing")) != (new := now.get(key, "nothing"))
    ]
    more = [f"{len(words) - _SHOWN} more"] if len(words) > _SHOWN else []
    return "; ".join(words[:_SHOWN] + more)


@cache
def _defaults() -> dict[str, Any]:
    return dict(leaves(plain(TrainMixConfig())))

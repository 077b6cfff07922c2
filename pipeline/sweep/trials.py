"""The trials of a sweep: what each one sets, and a name that stays the same from start to start."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.sweep.config import SweepConfig

_NAME_CHARS = 60


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    params: dict[str, Any]
    """What it sets, by dotted key."""
    seed: int

    @property
    def name(self) -> str:
        """The values as words, and digits that no other trial has."""
        text = json.dumps([self.params, self.seed], sort_keys=True, default=str)
        values = [self.params[key] for key in sorted(self.params)]
        words = "-".join(_word(value) for value in values)[:_NAME_CHARS].strip("-.")
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        return f"{words or 'base'}-s{self.seed}-{digest}"


def grid_trials(config: SweepConfig) -> list[Trial]:
    """Every combination of the grid and every one given alone, with every seed; else none.

    Raises:
        UserError: Two of them set the same.
    """
    combinations = itertools.product(*config.grid.values()) if config.grid else ()
    rows = [dict(zip(config.grid, values, strict=True)) for values in combinations]
    trials: dict[str, Trial] = {}
    for row, seed in itertools.product([*rows, *config.trials], config.seeds):
        trial = Trial(row, seed)
        if trials.setdefault(trial.name, trial) is not trial:
            raise UserError(f"trials: {trial.params} is there twice: leave one out")
    return list(trials.values())


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """What tables and MLflow's narrow columns call settings: the end of each that no other has.

    Returns:
        By key, in the same order: its last word, or more where that is `name` or not the only one.
    """
    keys = list(dict.fromkeys(keys))
    found = {}
    for key in keys:
        taken = {"name"} | {end for other in keys if other != key for end in _ends(other)}
        found[key] = next((end for end in _ends(key)[:-1] if end not in taken), key)
    return found


def _ends(key: str) -> list[str]:
    """Its last word, the last two, and so on; the whole key at the end."""
    words = key.split(".")
    return [".".join(words[-count:]) for count in range(1, len(words) + 1)]


def setting_tags(params: Mapping[str, Any], seed: int, keys: Iterable[str]) -> dict[str, str]:
    """A trial's settings as tags of its MLflow run, whose UI shows them as columns.

    Their names are short among `keys`, all those of the sweep.
    """
    short = short_names(keys)
    tags = {f"sweep.{short[key]}": cell(value) for key, value in params.items()}
    return {**tags, "sweep.seed": str(seed)}


def cell(value: Any) -> str:
    """A setting's value in a table."""
    return f"{value:.4g}" if isinstance(value, float) else _argument(value)


def examples(config: SweepConfig) -> list[Trial]:
    """Trials to check before any is trained: of a grid all; else the corners of the space."""
    if config.search == "grid":
        return grid_trials(config)
    ends = {key: next(iter(space.values())) for key, space in config.space.items()}
    first = {key: values[0] for key, values in ends.items()}
    others = [{**first, k: v} for k, values in ends.items() for v in values if v != values[0]]
    return [Trial(row, config.seeds[0]) for row in (first, *others)]


def arguments(config: SweepConfig, trial: Trial, storage: str) -> list[str]:
    """The command line that makes the recipe the trial's: `--key=value` words."""
    own = {"run.seed": trial.seed, "run.name": trial.name, "run.storage": storage}
    return settings_words({**config.overrides, **trial.params, **own})


def settings_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings by dotted key as a command line."""
    return [f"--{key}={_argument(value)}" for key, value in settings.items()]


def _argument(value: Any) -> str:
    """A value as the command line takes it: text as it is, all else as JSON, which YAML reads."""
    return value if isinstance(value, str) else json.dumps(value)


def _word(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else _argument(value)
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.") or "none"

"""Trials have names that stay; a sweep's mistakes are told; drawn ones are drawn alike."""

import functools
from pathlib import Path

import pytest
import yaml

from jobs.cli import parse
from jobs.sweep import build_trial, recipe_path
from pipeline.errors import UserError
from pipeline.training.sweep.config import SweepConfig
from pipeline.training.sweep.launch import check_trials
from pipeline.training.sweep.trials import Trial, arguments, grid_trials

DEPTH, INIT = "model.regularizer.depth", "model.regularizer.init"
SWEEPS = sorted((Path(__file__).parents[4] / "jobs" / "sweeps").glob("*.yaml"))


def sweep(**settings) -> SweepConfig:
    return SweepConfig(**{"name": "s", "base": "jobs/recipes/sweep_demo.yaml", **settings})


def test_the_grid_is_every_combination_with_every_seed():
    trials = grid_trials(sweep(grid={DEPTH: [1, 2], INIT: ["identity", "reference"]}, seeds=(0, 5)))
    assert len({trial.name for trial in trials}) == len(trials) == 8
    assert len({trial.cell for trial in trials}) == 4
    assert trials[0].params == {DEPTH: 1, INIT: "identity"}
    assert [trial.seed for trial in trials[:2]] == [0, 5]


def test_a_name_does_not_depend_on_the_other_trials():
    few = grid_trials(sweep(grid={DEPTH: [2]}))
    many = grid_trials(sweep(grid={DEPTH: [1, 2, 4]}, trials=[{INIT: "reference"}], seeds=(0, 1)))
    assert few[0].name in {trial.name for trial in many}
    assert Trial({DEPTH: 2}, 0).name != Trial({DEPTH: 2}, 1).name != Trial({DEPTH: 2.5}, 1).name


def test_twice_the_same_trial_is_refused():
    with pytest.raises(UserError, match="is there twice"):
        grid_trials(sweep(grid={DEPTH: [1]}, trials=[{DEPTH: 1}]))


def test_values_reach_the_training(tmp_path):
    config = sweep(
        storage=str(tmp_path),
        overrides={"data.weights": {"idd": 2, "ade20k": 1}},
        trials=[{DEPTH: 2, "model.regularizer.kind": "depthwise", "train.lr": 1e-05}],
        seeds=(3,),
    )
    recipe = recipe_path(config.base).read_text()
    (trial,) = grid_trials(config)
    built = build_trial(config, recipe, trial)
    assert built.data.weights == {"idd": 2, "ade20k": 1}
    assert (built.model.regularizer.depth, built.train.lr, built.run.seed) == (2, 1e-5, 3)
    assert built.run.storage == f"{tmp_path}/s"
    assert built.run.name == trial.name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to vary"),
        ({"grid": {DEPTH: []}}, rf"grid\.{DEPTH}=\[\]: must hold at least one"),
        ({"grid": {"run.name": ["a"]}}, r"grid\.run\.name: is set by the sweep itself"),
        ({"grid": {"run.seed": [1]}}, r"grid\.run\.seed: use seeds"),
        ({"grid": {DEPTH: [1]}, "seeds": (1, 1)}, "seeds="),
        ({"grid": {DEPTH: [1]}, "num_trials": 3}, "would be ignored with search=grid"),
        ({"search": "random"}, "needs space and num_trials"),
        ({"search": "tpe", "space": {"a": {"log": [1, 2]}}, "num_trials": 1}, "log_uniform"),
        ({"search": "random", "space": {"a": {"uniform": [2, 1]}}, "num_trials": 1}, "lower one"),
        ({"search": "random", "space": {"a": {"log_uniform": [0, 1]}}, "num_trials": 1}, "above 0"),
        (
            {"search": "tpe", "space": {"a": {"choice": [1]}}, "num_trials": 1, "seeds": (0, 1)},
            "trains each draw once",
        ),
        ({"name": "a/b", "grid": {DEPTH: [1]}}, "names a folder"),
    ],
)
def test_mistakes_are_told(settings, message):
    with pytest.raises(UserError, match=message):
        sweep(**settings)


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        ({DEPTH: 99, "model.regularizer.kind": "depthwise"}, "must be 0 to 8"),
        ({"model.regularizer.dept": 1}, "no such key.*depth"),
        ({"model.backbone.name": "convnext_attto"}, "convnext_atto"),
    ],
)
def test_a_trial_that_cannot_work_is_told_before_any_is_trained(trial, message, tmp_path):
    config = sweep(storage=str(tmp_path), grid={"train.lr": [0.1]}, trials=[trial])
    recipe = recipe_path(config.base).read_text()
    with pytest.raises(UserError, match=message):
        check_trials(grid_trials(config), functools.partial(build_trial, config, recipe))


def test_an_unknown_recipe_is_told():
    with pytest.raises(UserError, match=r"base=nothing\.yaml: no such recipe"):
        recipe_path("nothing.yaml")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps_parse_and_so_do_their_trials(path, tmp_path):
    config = parse(SweepConfig, ["--config", str(path), "--storage", str(tmp_path)])
    recipe = yaml.safe_load(recipe_path(config.base).read_text())
    assert recipe["run"]["name"]
    trials = grid_trials(config) if config.search == "grid" else []
    for trial in {trial.cell: trial for trial in trials}.values():
        build_trial(config, recipe_path(config.base).read_text(), trial)
    assert trials or config.num_trials
    header = path.read_text().split("name:")[0]
    for word in ("Reproduces:", "Cost" if path.stem != "demo" else "make", "Command:"):
        assert word in header


def test_arguments_are_text_or_json():
    words = arguments(sweep(grid={"a": [1]}), Trial({"a": "x y", "b": None, "c": [1]}, 2), "/r")
    assert words[:3] == ["--a=x y", "--b=null", "--c=[1]"]

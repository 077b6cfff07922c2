"""Trials have names that stay; a sweep's mistakes are told; drawn ones are drawn alike."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cli import main, parse
from jobs.sweep import JobConfig, build_trial, builders, main_run, merge_overrides, recipe_path, run
from model.packages import BACKBONE_PACKAGES, TEXT_PACKAGES
from pipeline.checkpoints.files import TRAINER, step_folder
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from pipeline.sweep import results
from pipeline.sweep.config import EarlyStopping, SweepConfig
from pipeline.sweep.launch import absolute, check_trials
from pipeline.sweep.results import Result
from pipeline.sweep.search import check_stopping, tune_config
from pipeline.sweep.settings import check_settings, settings_of
from pipeline.sweep.trials import Trial, arguments, examples, grid_trials, short_names

LR = "train.lr"
DEPTH, INIT = "model.regularizer.depth", "model.regularizer.init"
NO_PACKAGES = pytest.mark.skipif(
    not all(
        entry.version
        for entry in (BACKBONE_PACKAGES["efficientnet-lite0"], TEXT_PACKAGES["all-minilm-l6-v2"])
    ),
    reason="the extra photos is not installed",
)
SWEEPS = [
    pytest.param(path, id=path.stem, marks=NO_PACKAGES if path.stem == "photos" else ())
    for path in sorted((Path(__file__).parents[3] / "jobs" / "sweeps").glob("*.yaml"))
]


def sweep(**settings) -> SweepConfig:
    defaults = {"name": "s", "base": "jobs/recipes/sweep_demo.yaml"}
    return SweepConfig(**{**defaults, "overrides": {"data.shards": "/shards"}, **settings})


def test_the_grid_is_every_combination_with_every_seed():
    trials = grid_trials(sweep(grid={DEPTH: [1, 2], INIT: ["identity", "reference"]}, seeds=(0, 5)))
    assert len({trial.name for trial in trials}) == len(trials) == 8
    assert trials[0].params == {DEPTH: 1, INIT: "identity"}
    assert [trial.seed for trial in trials[:2]] == [0, 5]


def test_a_name_does_not_depend_on_the_other_trials():
    few = grid_trials(sweep(grid={DEPTH: [2]}))
    many = grid_trials(sweep(grid={DEPTH: [1, 2, 4]}, trials=[{INIT: "reference"}], seeds=(0, 1)))
    assert few[0].name in {trial.name for trial in many}
    assert Trial({DEPTH: 2, INIT: "a"}, 0).name == Trial({INIT: "a", DEPTH: 2}, 0).name
    assert Trial({DEPTH: 2}, 0).name != Trial({DEPTH: 2}, 1).name != Trial({DEPTH: 2.5}, 1).name


@pytest.mark.parametrize(
    ("keys", "short"),
    [
        ([DEPTH, INIT, DEPTH], ["depth", "init"]),
        (["model.backbone.name"], ["backbone.name"]),
        (
            [DEPTH, "model.head.depth", "a.head.depth"],
            ["regularizer.depth", "model.head.depth", "a.head.depth"],
        ),
        (["data.weights", "weights"], ["data.weights", "weights"]),
    ],
)
def test_short_names_are_the_shortest_that_no_other_setting_has(keys, short):
    assert list(short_names(keys).values()) == short


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
        ({"grid": {DEPTH: []}}, rf"grid\.{DEPTH}=\[\]: must be a list of values"),
        ({"grid": {"train": {"lr": [1]}}}, r"grid\.train=.*: write train\.lr: \[\.\.\.\]"),
        (
            {"grid": {LR: [1]}, "overrides": {LR: 2}},
            r"overrides\.train\.lr: would be ignored, since grid sets it",
        ),
        ({"search": "tpe", "space": {"a": 1}, "num_trials": 1}, r"space\.a=1: must be one of"),
        ({"grid": {DEPTH: 3}}, rf"grid\.{DEPTH}=3: must be a list"),
        ({"grid": {DEPTH: [1, 2, 1]}}, rf"grid\.{DEPTH}: holds 1 twice"),
        ({"grid": {DEPTH: [1]}, "average_over": ("a",)}, "average_over=a: must be a key of grid"),
        ({"grid": {DEPTH: [1]}, "metric": "val/mIoU"}, "metric=val/mIoU.*did you mean 'val/miou'"),
        ({"grid": {DEPTH: [1]}, "metric": "train/loss"}, "metric=train/loss: must be"),
        ({"grid": {DEPTH: [1]}, "metric": "eval/miou"}, "needs evaluate"),
        ({"grid": {DEPTH: [1]}, "evaluate": {"out": "x"}}, r"evaluate\.out: is set by the sweep"),
        (
            {
                "grid": {DEPTH: [1]},
                "evaluate": {"protocol": "unified"},
                "metric": "eval/miou",
                "early_stopping": EarlyStopping(grace_steps=10),
            },
            "known at a trial's end alone",
        ),
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
    with pytest.raises(UserError, match=message):
        check_trials(config, builders(config))


def test_what_is_wrong_with_the_evaluation_or_early_stopping_is_told_too(tmp_path):
    given = {"storage": str(tmp_path), "grid": {LR: [0.1]}}
    evaluation = {"evaluate": {"protocl": "unified"}, "metric": "eval/miou"}
    config = sweep(**given, **evaluation)
    with pytest.raises(UserError, match=r"evaluate\.protocl: no such key.*'protocol'"):
        check_trials(config, builders(config))
    config = sweep(**given, early_stopping=EarlyStopping(grace_steps=500))
    with pytest.raises(UserError, match=r"must be below train\.steps=200"):
        check_trials(config, builders(config))


def test_trials_without_shards_are_refused_before_any_is_trained(tmp_path):
    config = sweep(storage=str(tmp_path), overrides={}, grid={"train.lr": [0.1]})
    with pytest.raises(UserError, match=r"overrides\.data\.shards: is not set.*--overrides\.data"):
        check_trials(config, builders(config))


def left(config: SweepConfig, status: str = "finished", settings=None) -> Trial:
    """Writes what an earlier start of the sweep left of its first trial."""
    (trial, *_) = grid_trials(config)
    known = settings_of(config, builders(config).training(trial)) if settings is None else settings
    result = Result(trial.name, trial.params, 0, status, settings=known)  # type: ignore[arg-type]
    results.write(open_storage(f"{config.storage}/s"), result)
    return trial


def check(config: SweepConfig) -> None:
    storage = open_storage(f"{config.storage}/s")
    trials = grid_trials(config) if config.search == "grid" else []
    check_settings(config, trials, builders(config).training, storage)


def take_a_step(config: SweepConfig, trial: Trial, step: int) -> None:
    """Writes the file in which Ray Train names a trial's newest checkpoint."""
    folder = Path(config.storage) / "s" / trial.name
    (folder / step_folder(step)).mkdir(parents=True)
    (folder / step_folder(step) / TRAINER).touch()
    latest = {"checkpoint_dir_name": step_folder(step)}
    snapshot = {"latest_checkpoint_result": latest, "checkpoint_results": [latest]}
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"base": "jobs/recipes/one_gpu.yaml"}, r"\d+ more"),
        ({"overrides": {"data.shards": "/other"}}, 'data.shards "/shards", now "/other"'),
        (
            {"overrides": {"data.shards": "/shards", "train.warmup_steps": 5}},
            "train.warmup_steps 0, now 5",
        ),
        (  # The recipe has batch norm over each worker's share alone.
            {"overrides": {"data.shards": "/shards", "cluster.num_workers": 2}},
            "cluster.num_workers 1, now 2",
        ),
        (
            {"evaluate": {"protocol": "unified", "max_images": 9}},
            'evaluate.max_images "nothing", now 9; evaluate.protocol "nothing", now "unified"',
        ),
    ],
)
def test_results_of_other_settings_are_refused(change, difference, tmp_path):
    config = sweep(storage=str(tmp_path), grid={LR: [0.1, 0.2]})
    trial = left(config)
    check(config)
    check(replace(config, grid={LR: [0.1, 0.4]}, seeds=(0, 1), max_concurrent=3))
    elsewhere = {"cluster.use_gpu": True, "data.loader_cpus": 1, "train.log_every": 7}
    check(replace(config, overrides=config.overrides | elsewhere))
    with pytest.raises(UserError, match=rf"^name=s: .*result of trial {trial.name} .*{difference}"):
        check(replace(config, **change))


def test_drawn_results_of_other_settings_are_refused(tmp_path):
    config = sweep(storage=str(tmp_path), grid={LR: [0.02]})
    left(config)
    space = {LR: {"log_uniform": [0.001, 0.1]}}
    drawing = replace(config, grid={}, search="random", space=space, num_trials=2)
    check(drawing)
    with pytest.raises(UserError, match=r"train\.momentum 0\.9, now 0\.5"):
        check(replace(drawing, overrides={"data.shards": "/shards", "train.momentum": 0.5}))


def test_a_trial_that_failed_may_get_other_settings_unless_it_would_resume(tmp_path):
    config = sweep(storage=str(tmp_path), grid={LR: [0.1, 0.2]})
    trial = left(config, "failed")
    other = replace(config, overrides={"data.shards": "/shards", "train.momentum": 0.5})
    check(other)
    take_a_step(config, trial, 30)
    check(config)
    with pytest.raises(UserError, match=r"holds the checkpoint of step 30 of trial .*momentum"):
        check(other)
    (tmp_path / "s" / "results" / f"{trial.name}.json").unlink()
    with pytest.raises(UserError, match=r"checkpoint of step 30, but its result, .* is gone"):
        check(config)


def test_results_that_do_not_say_their_settings_are_taken_with_a_warning(tmp_path, caplog):
    config = sweep(storage=str(tmp_path), grid={LR: [0.1, 0.2]})
    trial = left(config, settings={})
    check(config)
    assert f"1 results, such as {trial.name}, are of a version" in caplog.text


@pytest.mark.parametrize(
    "words",
    [
        ["--overrides", "{data.shards: s3://mine, train.lr: 1.0e-5}"],
        [
            "--overrides={data.shards: s3://other, train.lr: 1.0e-5}",
            "--overrides={data.shards: s3://mine}",
        ],
        ["--overrides.data.shards", "s3://mine", "--overrides.train.lr=1.0e-5"],
        [
            "--overrides",
            "{data.shards: s3://other}",
            "--overrides.data.shards=s3://mine",
            "--overrides.train.lr=1.0e-5",
        ],
    ],
)
def test_overrides_of_the_command_line_add_to_those_of_the_file(words, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: s\nbase: b\ngrid: {train.seed: [1]}\n"
        "overrides: {train.steps: 30, data.weights: {idd: 2}, data.shards: s3://file}\n"
    )
    config = parse(SweepConfig, merge_overrides(["--config", str(path), *words, "--name", "t"]))
    assert config.name == "t"
    assert config.overrides == {
        "train.steps": 30,
        "data.weights": {"idd": 2},
        "data.shards": "s3://mine",
        "train.lr": 1e-05,
    }


@pytest.mark.parametrize(
    "words",
    [["--config", "none.yaml", "--overrides={}"], ["--overrides", "[1]"], ["--overrides"], ["--a"]],
)
def test_a_command_line_that_cannot_be_merged_is_left_to_the_parser(words):
    assert merge_overrides(words) == words


def test_the_corners_of_a_space_are_checked_before_any_is_trained(tmp_path):
    space = {"train.lr": {"log_uniform": [0.001, 1]}, "train.optimizer": {"choice": ["sgd", "adm"]}}
    config = sweep(storage=str(tmp_path), search="random", num_trials=2, space=space)
    assert [tuple(trial.params.values()) for trial in examples(config)] == [
        (0.001, "sgd"),
        (1, "sgd"),
        (0.001, "adm"),
    ]
    with pytest.raises(UserError, match=r"'train\.optimizer': 'adm'.*train\.optimizer"):
        check_trials(config, builders(config))


def test_a_fold_is_evaluated_by_what_its_training_left_out(tmp_path):
    config = sweep(
        storage=str(tmp_path),
        base="jobs/recipes/pascal5i_resnet101.yaml",
        grid={"train.test_fold": [2]},
        evaluate={"protocol": "pascal-5i", "roots.pascal-5i": "/voc", "max_images": 5},
        metric="eval/miou",
    )
    training = builders(config).training(grid_trials(config)[0])
    evaluation = builders(config).evaluation(training, "/checkpoint")
    assert (evaluation.folds, evaluation.roots) == ((2,), {"pascal-5i": "/voc"})
    assert (evaluation.workers.num_workers, evaluation.workers.use_gpu) == (4, True)
    assert evaluation.out == f"{tmp_path}/s/evaluation"
    with pytest.raises(UserError, match="no validation: set evaluate"):
        check_trials(replace(config, evaluate={}, metric="val/miou"), builders(config))


@pytest.mark.parametrize(
    ("overrides", "grace", "message"),
    [
        ({"train.validate_every": 50}, 20, r"validate_every=50 and train\.checkpoint_every=100"),
        ({}, 200, r"must be below train\.steps=200"),
        ({"train.steps": 0, "train.passes": 2}, 20, "set train.steps"),
    ],
)
def test_early_stopping_needs_figures_on_the_way(overrides, grace, message, tmp_path):
    stopping = EarlyStopping(grace_steps=grace)
    config = sweep(overrides=overrides, grid={"train.lr": [0.1]}, early_stopping=stopping)
    example = builders(replace(config, storage=str(tmp_path))).training(grid_trials(config)[0])
    with pytest.raises(UserError, match=message):
        check_stopping(config, example)


def test_tpe_without_optuna_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    space = {"train.lr": {"log_uniform": [0.001, 0.1]}}
    config = sweep(search="tpe", num_trials=2, space=space, storage=str(tmp_path))
    example = builders(config).training(examples(config)[0])
    storage = open_storage(str(tmp_path))
    with pytest.raises(UserError, match=r"pip install -c constraints\.txt '\.\[sweep\]'"):
        tune_config(config, storage, example, 2, 1)
    tune_config(replace(config, search="random"), storage, example, 2, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gird: {train.lr: [1]}", r"^error: gird.*: no such key"),
        ("early_stopping: {grace_step: 3}", "did you mean 'early_stopping.grace_steps'"),
        ("grid: {}", "nothing to vary"),
        ("grid: [1, 2]", r"grid=\[1, 2\]: must be a mapping"),
    ],
)
def test_a_wrong_sweep_file_is_one_error_line(text, message, tmp_path, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"name: s\nbase: jobs/recipes/sweep_demo.yaml\n{text}\n")
    assert main(SweepConfig, run, ["--config", str(path)]) == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed)
    assert printed.count("\n") == 1


def test_a_storage_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").touch()
    config = sweep(storage=str(tmp_path / "file" / "runs"), grid={LR: [0.1]})
    with pytest.raises(UserError, match=r"^storage=.*/file/runs must be a folder .*give another"):
        absolute(config)


def test_an_unknown_recipe_is_told():
    with pytest.raises(UserError, match=r"base=nothing\.yaml: no such recipe"):
        recipe_path("nothing.yaml")


def test_a_dry_run_lists_the_trials_and_what_is_left_of_them(tmp_path, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: s\nbase: jobs/recipes/sweep_demo.yaml\ngrid: {train.lr: [0.1, 0.2]}\n"
        f"storage: {tmp_path}\noverrides: {{data.shards: /shards}}\n"
    )
    left(sweep(storage=str(tmp_path), grid={LR: [0.1, 0.2]}))
    assert main(JobConfig, main_run, ["--config", str(path), "--dry_run", "true"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"2 trials in {tmp_path}/s, 1 of them done",
        "each holds 0.75 logical CPUs",
        "finished train.lr=0.1, seed 0",
        "waits    train.lr=0.2, seed 0",
    ]


@pytest.mark.parametrize("path", SWEEPS)
def test_shipped_sweeps_and_the_networks_of_their_trials_can_be_built(path, tmp_path):
    words = ["--config", str(path), "--storage", str(tmp_path)]
    config = parse(SweepConfig, merge_overrides([*words, "--overrides.data.shards=/shards"]))
    check_trials(replace(config, seeds=config.seeds[:1]), builders(config))
    assert len(examples(config)) > 1
    header = path.read_text().split("name:")[0]
    for word in ("Reproduces:", "Cost" if path.stem != "demo" else "make", "Command:"):
        assert word in header


def test_arguments_are_text_or_json():
    words = arguments(
        sweep(grid={"a": [1]}, overrides={}), Trial({"a": "x y", "b": None, "c": [1]}, 2), "/r"
    )
    assert words[:3] == ["--a=x y", "--b=null", "--c=[1]"]

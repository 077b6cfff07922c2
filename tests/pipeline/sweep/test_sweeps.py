"""Whole sweeps on a real Ray and a real MLflow store: failures, restarts, searches, early ends."""

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from jobs.sweep import build_evaluation, build_trial
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from pipeline.sweep import results
from pipeline.sweep.config import EarlyStopping, SweepConfig
from pipeline.sweep.launch import SweepOutcome, run_sweep
from pipeline.sweep.results import Result
from pipeline.sweep.runner import Builders
from pipeline.sweep.settings import settings_of
from pipeline.sweep.trials import grid_trials
from pipeline.tracking.tracker import TrackingConfig
from pipeline.training.config import TrainMixConfig
from tests.support.mini_shards import MiniShards, tiny_model

RECIPE = """\
data: {{shards: {shards}, augment: {{crop_px: 48, base_px: 64}}, loader_cpus: 0.25,
       num_loaders: 1, loader_threads: 1}}
model:
  backbone: {{name: vit_tiny_patch16_224, pretrained: false, kwargs: {kwargs}}}
  text: {{encoder: stand-in}}
  features: 16
train: {{steps: 4, batch_size: 4, lr: 0.01, log_every: 2, validate_every: 4, val_images: 2,
        checkpoint_every: 4, keep_best: ''}}
cluster: {{num_workers: 1, cpus_per_worker: 0.5, threads_per_worker: 1}}
"""
LR = "train.lr"


def sweep(mini: MiniShards, folder: Path, **settings) -> SweepConfig:
    defaults = {"name": "tiny", "base": "written by the test", "metric": "val/pixel_accuracy"}
    defaults |= {"storage": str(folder), "max_concurrent": 2}
    return SweepConfig(**(defaults | settings), tracking=TrackingConfig(uri=mini.tracking_uri))


def recipe_text(mini: MiniShards) -> str:
    kwargs = yaml.safe_dump(dict(tiny_model().backbone.kwargs), default_flow_style=True).strip()
    return RECIPE.format(shards=mini.folder, kwargs=kwargs)


def run(mini: MiniShards, config: SweepConfig) -> SweepOutcome:
    training = functools.partial(build_trial, config, recipe_text(mini))
    return run_sweep(config, Builders(training, functools.partial(build_evaluation, config)))


def test_ray_is_asked_for_what_the_trials_at_once_cannot_do_without(mini_shards, tmp_path):
    recipe = recipe_text(mini_shards).replace("num_workers: 1", "num_workers: 2, use_gpu: true")
    config = sweep(mini_shards, tmp_path, grid={LR: [0.01, 0.02, 0.03]})
    build = Builders(
        functools.partial(build_trial, config, recipe), functools.partial(build_evaluation, config)
    )
    asked = []

    def start_ray(*needed: float) -> None:
        asked.append(needed)
        raise UserError("it is too small")

    with pytest.raises(UserError, match="it is too small"):
        run_sweep(config, build, start_ray)
    # Two trials at once: logical CPUs with their loaders, GPUs, and CPUs of the workers alone.
    assert asked == [(2.5, 4, 2.0)]


def found(config: SweepConfig) -> dict[str, Result]:
    return results.read_all(open_storage(f"{config.storage}/{config.name}"))


def written(config: SweepConfig) -> dict[str, int]:
    """When each result was written, in ns."""
    folder = Path(config.storage) / config.name / results.FOLDER
    return {path.stem: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(scope="module")
def one_fails(
    mini_shards: MiniShards, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SweepConfig, SweepOutcome]:
    """A sweep of three trials: one trained, one with a result already, and one that fails."""
    evaluate = {"protocol": "unified", "shards": str(mini_shards.folder), "labels": "checkpoint"}
    config = sweep(
        mini_shards,
        tmp_path_factory.mktemp("one-fails"),
        name="one-fails",
        grid={LR: [0.01, 0.02]},
        trials=[{"data.train_split": "nothing"}],
        evaluate={**evaluate, "max_images": 2},
        metric="eval/miou",
    )
    _, known, _ = grid_trials(config)
    training = build_trial(config, recipe_text(mini_shards), known)
    settings, metrics = settings_of(config, training), {"eval/miou": 0.001}
    storage = open_storage(f"{config.storage}/{config.name}")
    results.write(
        storage,
        Result(known.name, known.params, 0, "finished", metrics, settings=settings),
    )
    return config, run(mini_shards, config)


# One training and one evaluation, which the next two tests share.
@pytest.mark.slow
def test_a_failed_trial_ends_nothing_and_is_named(mini_shards, one_fails):
    config, outcome = one_fails
    fresh, known, failed = (found(config)[trial.name] for trial in grid_trials(config))
    assert (fresh.status, failed.status) == ("finished", "failed"), found(config)
    assert 0 <= fresh.metrics["eval/miou"] <= 1
    assert fresh.metrics["step"] == 4
    assert fresh.settings == known.settings | {LR: 0.01}
    assert "no manifest of split 'nothing'" in failed.error
    verdict = outcome.comparison.verdict
    assert f"1 of 3 trials failed; the first, {failed.name}: {failed.error}" in verdict
    assert len(outcome.comparison.rows) == 3
    assert {path.name for path in Path(outcome.folder).iterdir()} >= {
        "comparison.json",
        "comparison.md",
        "eval_miou_by_lr.png",
        "curves_train_loss.png",
        "trials.csv",
        "verdict.txt",
    }

    client = MlflowClient(mini_shards.tracking_uri)
    (parent, (child,)) = runs_of(client, config)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"] == outcome.comparison.markdown()
    assert parent.data.metrics["sweep/num_failed"] == 1
    assert child.data.tags["sweep.outcome"] == "slow"
    assert child.data.tags["sweep.lr"] == "0.01"
    assert "eval/unified" in " ".join(child.data.metrics)
    assert_view(client, parent, ["tags.`sweep.lr`", "metrics.`eval/miou`", "tags.`sweep.outcome`"])
    assert {file.path for file in client.list_artifacts(parent.info.run_id, "comparison")} >= {
        "comparison/verdict.txt",
        "comparison/eval_miou_by_lr.png",
    }


@pytest.mark.long
def test_a_second_start_tries_the_failed_trial_alone_and_refuses_other_settings(
    mini_shards, one_fails
):
    config, _ = one_fails
    (failed,) = (result for result in found(config).values() if result.status == "failed")
    client = MlflowClient(mini_shards.tracking_uri)
    parent, _ = runs_of(client, config)
    before = written(config)
    other = replace(config, overrides={"train.momentum": 0.5})
    with pytest.raises(UserError, match=r"with other settings \(train.momentum 0.9, now 0.5\)"):
        run(mini_shards, other)
    assert written(config) == before
    run(mini_shards, config)
    changed = {name for name, when in written(config).items() if when != before[name]}
    assert changed == {failed.name}
    assert runs_of(client, config)[0].info.run_id == parent.info.run_id
    assert len(runs_of(client, config)[1]) == 1


@pytest.mark.long
def test_a_metric_that_no_trial_reports_ends_the_sweep_after_the_first(
    mini_shards, one_fails, tmp_path
):
    """Of two that were killed: the first after its last step, which is not trained again."""
    settings = {"name": "unknown", "grid": {LR: [0.01, 0.02]}, "max_concurrent": 1}
    config = sweep(mini_shards, tmp_path, metric="val/citiscapes/miou", **settings)
    earlier, _ = one_fails
    shutil.copytree(f"{earlier.storage}/{earlier.name}", tmp_path / "unknown")
    for trial in grid_trials(config):
        killed = Result(trial.name, trial.params, 0, "running")
        training = build_trial(config, recipe_text(mini_shards), trial)
        killed = replace(killed, settings=settings_of(config, training))
        results.write(open_storage(str(tmp_path / "unknown")), killed)
    with pytest.raises(UserError, match=r"no trial reports it; .*mean 'val/cityscapes/miou'"):
        run(mini_shards, config)
    statuses = [found(config)[trial.name].status for trial in grid_trials(config)]
    assert statuses == ["finished", "running"]


def assert_view(client: MlflowClient, parent, columns: list[str]) -> None:
    """MLflow's UI finds the saved view of the trials, which it keeps as a tag."""
    tags = client.get_experiment(parent.info.experiment_id).tags
    view = json.loads(tags[f"mlflow.sharedViewState.sweep-{parent.info.run_id[:12]}"])
    state = json.loads(view["state"])
    assert view["name"] == f"sweep {parent.info.run_name}"
    assert set(columns) <= set(state["selectedColumns"])
    assert state["orderByKey"] == "metrics.`eval/miou`"
    assert len(client.search_runs([parent.info.experiment_id], state["searchFilter"])) == 1


def runs_of(client: MlflowClient, config: SweepConfig):
    """The sweep's own run, and its trials'."""
    experiment = client.get_experiment_by_name("lseg")
    assert experiment is not None
    ids, mine = [experiment.experiment_id], f"attributes.run_name = '{config.name}'"
    (parent,) = client.search_runs(ids, mine)
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return parent, list(client.search_runs(ids, query))


# Two trainings of twelve steps.
@pytest.mark.long
def test_a_trial_behind_the_others_is_stopped(mini_shards, tmp_path):
    config = sweep(
        mini_shards,
        tmp_path,
        name="early",
        overrides={"train.steps": 12},
        grid={LR: [0.05, 1e-9]},
        max_concurrent=1,
        early_stopping=EarlyStopping(grace_steps=4, reduction_factor=2),
    )
    outcome = run(mini_shards, config)
    good, bad = (found(config)[judged.result.name] for judged in outcome.comparison.trials)
    assert (good.status, good.metrics["step"]) == ("finished", 12)
    assert bad.status == "stopped"
    assert bad.metrics["step"] < 12
    assert bad.value(config.metric) < good.value(config.metric)
    before = written(config)
    run(mini_shards, config)  # Nothing is left to do.
    assert written(config) == before
    _, children = runs_of(MlflowClient(mini_shards.tracking_uri), config)
    by_rate = {child.data.tags["sweep.lr"]: child for child in children}
    assert by_rate["1e-09"].info.status == "KILLED"
    assert by_rate["0.05"].info.status == "FINISHED"


# Two trainings for each kind.
@pytest.mark.long
@pytest.mark.parametrize("search", ["tpe"])  # Which also draws at random first.
def test_a_search_that_is_started_again_goes_on(mini_shards, tmp_path, search):
    def drawn(num: int) -> SweepConfig:
        space = {LR: {"log_uniform": [0.001, 0.1]}, "train.batch_size": {"choice": [2, 4]}}
        settings = {"name": search, "search": search, "space": space, "num_trials": num}
        return sweep(mini_shards, tmp_path, **settings)

    run(mini_shards, drawn(1))
    (first,) = written(drawn(1)).items()
    outcome = run(mini_shards, drawn(2))
    assert len(outcome.comparison.rows) == 2
    assert first in written(drawn(2)).items()
    for result in found(drawn(2)).values():
        assert 0.001 <= result.params[LR] <= 0.1
        assert result.params["train.batch_size"] in (2, 4)
        assert result.status == "finished"


def test_a_search_is_told_what_earlier_starts_found(tmp_path):
    from pipeline.sweep.search import num_to_deal, tune_config

    space = {LR: {"log_uniform": [0.001, 0.1]}}
    settings = {"name": "t", "base": "b", "search": "tpe", "space": space, "num_trials": 5}
    config, storage = SweepConfig(**settings), open_storage(str(tmp_path))
    for name, status, lr, value in (
        ("a", "finished", 0.01, 0.5),
        ("b", "failed", 0.02, None),
        ("c", "running", 0.03, None),
        ("d", "finished", 0.9, 0.7),  # The space was wider.
    ):
        metrics = {} if value is None else {"val/miou": value}
        results.write(storage, Result(name, {LR: lr}, 0, status, metrics))
    assert num_to_deal(config, [], storage) == 3
    algorithm = tune_config(config, storage, TrainMixConfig(), 3, 1).search_alg
    told = algorithm._ot_study.get_trials()  # type: ignore[union-attr]
    assert [(t.params[LR], t.value) for t in told if t.state.is_finished()] == [(0.01, 0.5)]
    assert algorithm.suggest("next") == {LR: 0.03}  # type: ignore[union-attr]

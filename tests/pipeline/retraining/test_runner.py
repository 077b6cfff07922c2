"""Calls of the scheduler against a real registry: on a database file, and (slow) on a server."""

import json
import math
from collections.abc import Callable

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.errors import UserError
from pipeline.registry.actions import change_registry
from pipeline.registry.config import Action, RegistryConfig, RegistryJobConfig
from pipeline.registry.locks import LockConfig, RetrainLocked, locked
from pipeline.retraining.config import ComparisonConfig
from pipeline.retraining.record import DecisionRecord
from pipeline.retraining.state import STATE
from pipeline.storage.local import LocalStorage
from pipeline.tracking.config import TrackingConfig
from tests.pipeline.retraining.world import World


@pytest.fixture(params=["file", pytest.param("server", marks=pytest.mark.long)])
def uri(request) -> str:
    # The server is the point of issue; the file is there so that the rules are tested always.
    if request.param == "file":
        return request.getfixturevalue("mlflow_file")
    return request.getfixturevalue("mlflow_server").uri


@pytest.fixture
def world(make_world, uri) -> World:
    return make_world(uri)


@pytest.fixture
def file_world(make_world, mlflow_file) -> World:
    return make_world(mlflow_file)


def fail(*_args, **_kwargs):
    raise MlflowException("no connection")


def before_state(patch: pytest.MonkeyPatch, phase: str, do: Callable[[], None]) -> None:
    """Does something in the moment before the storage gets a state of this phase."""
    write = LocalStorage.write

    def write_after(self, path, data):
        if path == STATE and json.loads(data)["attempt"]["phase"] == phase:
            do()
        write(self, path, data)

    patch.setattr(LocalStorage, "write", write_after)


def test_the_first_model_becomes_champion_and_says_why(make_world, mlflow_file):
    world = make_world(mlflow_file, is_first=True)
    result = world.call()
    assert (result.kind, world.champion()) == ("promoted", "1")
    tags = world.tags("1")
    assert tags["retrain.decision"] == "promoted"
    assert "there was no champion" in tags["retrain.reasons"]
    assert tags["manifest.idd"] == "old"
    assert tags["validation.idd"] == "v1"
    assert "replaced" not in tags
    assert world.done("train") == [f"train {world.attempt().run_name} fresh "]
    with pytest.raises(UserError, match="that replaced another one, and version 1"):
        world.retraining().rollback()


def test_a_first_model_without_figures_is_no_champion(make_world, mlflow_file):
    world = make_world(mlflow_file, is_first=True)
    world.arrive("old", math.nan, 0.5, 0.5)
    result = world.call()
    assert (result.kind, world.champion()) == ("rejected", "")
    assert result.text.endswith("was rejected: the candidate's mIoU is no number (ade20k)")
    assert world.call().kind == "tried"
    world.arrive("new", 0.5, 0.5, 0.5)
    assert (world.call().kind, world.champion()) == ("promoted", "2")


def test_nothing_changed(world):
    result = world.call()
    assert result.kind == "unchanged"
    assert "nothing to do: the shards are those of the champion, version 1" in result.text
    assert not (world.folder / "done.txt").exists()
    assert world.call(force=True).kind == "rejected"  # It is no better: but it was trained.
    assert len(world.models.versions()) == 2


def test_new_data_and_better(world):
    world.arrive("new", 0.5, 0.52, 0.51)
    result = world.call()
    assert (result.kind, result.version, world.champion()) == ("promoted", "2", "2")
    assert "mean mIoU 0.5100 against the champion's 0.5000" in result.text
    # Warm: from the champion; both were evaluated, once.
    (train,) = world.done("train")
    assert train.split()[2:] == ["warm", f"models:/{world.name}/1"]
    assert world.done("evaluate") == ["evaluate 0.5 0.5 0.5", "evaluate 0.5 0.52 0.51"]
    tags = world.tags("2")
    assert tags["replaced"] == tags["retrain.compared_with"] == "1"
    assert (tags["manifest.idd"], tags["retrain.gain"]) == ("new", "+0.010000")
    assert world.models.alias("candidate") is None
    # The decision is with the run of the training too, and in the log.
    run = world.client.get_run(world.attempt().run_id)
    assert run.data.tags["retrain.decision"] == "promoted"
    (artifact,) = world.client.list_artifacts(run.info.run_id, "retrain")
    assert artifact.path.endswith(f"{world.attempt().id}.json")
    last = world.decisions()[-1]
    assert last["attempt"]["figures"]["2"]["coco/miou"] == 0.52
    assert last["attempt"]["decision"]["limits"] == {"margin": 0.002, "max_drop": 0.01}
    assert world.call().kind == "unchanged"


def test_new_data_and_worse_is_not_tried_again(world):
    world.arrive("new", 0.49, 0.49, 0.5)
    result = world.call()
    assert (result.kind, world.champion()) == ("rejected", "1")
    assert str(world.models.alias("candidate").version) == "2"
    again = world.call()
    assert again.kind == "tried"
    assert "this data was already tried, as version 2, rejected on 20" in again.text
    assert "mean mIoU 0.4933" in again.text
    assert len(world.done("train")) == 1
    first = world.attempt().run_name
    assert world.call(force=True, margin=0.0).kind == "rejected"
    assert world.attempt().run_name != first
    # Newer data is another matter.
    world.arrive("newer", 0.6, 0.6, 0.6)
    assert world.call().kind == "promoted"


def test_worse_on_one_dataset_only(world):
    world.arrive("new", 0.9, 0.9, 0.48)
    result = world.call()
    assert (result.kind, world.champion()) == ("rejected", "1")
    assert "idd: mIoU 0.4800 against the champion's 0.5000: -0.0200" in result.text
    assert "ade20k" not in result.text
    assert world.call(force=True, max_drop=0.03).kind == "promoted"


def test_rollback_puts_one_after_the_other_back(world):
    for number, score in ((2, 0.6), (3, 0.7)):
        world.arrive(f"data {number}", score, score, score)
        assert world.call().version == str(number)
    # A training under way does not stand in its way.
    with locked(world.storage, "retrain.lock", LockConfig(), "the re-training"):
        result = world.retraining().rollback()
    assert (result.kind, world.champion()) == ("rolled back", "2")
    assert world.tags("3")["retrain.decision"] == "rolled back"
    assert world.decisions()[-1]["kind"] == "rollback"
    # The data that was rolled back is not taken up again by itself.
    assert world.call().kind == "tried"
    assert world.champion() == "2"
    world.retraining().rollback()
    assert world.champion() == "1"
    with pytest.raises(UserError, match="that replaced another one, and version 1"):
        world.retraining().rollback()
    assert world.champion() == "1"


@pytest.mark.parametrize("failing", ["tag_version", "log"])
def test_a_rollback_whose_record_fails_is_done(file_world, monkeypatch, caplog, failing):
    world = file_world
    for number, score in ((2, 0.6), (3, 0.7)):
        world.arrive(f"data {number}", score, score, score)
        world.call()
    monkeypatch.setattr(DecisionRecord, failing, fail)
    result = world.retraining().rollback()
    assert (result.kind, result.version, world.champion()) == ("rolled back", "2", "2")
    assert "the rollback is done: version 2 is the champion; only its record failed" in caplog.text


@pytest.mark.parametrize(("done", "champion"), [(False, "2"), (True, "1")])
def test_a_rollback_that_fails_says_which_the_champion_is(file_world, monkeypatch, done, champion):
    """Before it did anything, or when only the answer got lost."""
    world = file_world
    world.arrive("new", 0.6, 0.6, 0.6)
    world.call()
    set_alias = MlflowClient.set_registered_model_alias

    def and_fail(*args):
        if done:
            set_alias(*args)
        fail()

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", and_fail)
    with pytest.raises(UserError, match=f"no connection.*; version {champion} is the champion$"):
        world.retraining().rollback()
    assert world.champion() == champion


def test_rollback_without_a_champion_or_with_a_deleted_one_is_refused(file_world):
    world = file_world
    world.arrive("new", 0.6, 0.6, 0.6)
    world.call()
    world.client.delete_model_version(world.name, "1")
    with pytest.raises(UserError, match=r"version=1\) not found"):
        world.retraining().rollback()
    world.models.remove_alias("champion")
    with pytest.raises(UserError, match="and there is none: set the alias"):
        world.retraining().rollback()


@pytest.mark.parametrize("then", ["nothing", "1", "none"])
def test_a_promotion_without_its_record_is_not_done_again(file_world, monkeypatch, then):
    """MLflow fails right after the alias moved; a person may put it back before the next call."""
    world = file_world
    world.arrive("new", 0.6, 0.6, 0.6)
    with monkeypatch.context() as patch:
        patch.setattr(DecisionRecord, "tag_version", fail)
        with pytest.raises(MlflowException, match="no connection"):
            world.call()
    assert (world.champion(), world.attempt().phase) == ("2", "promoted")
    if then == "1":
        world.client.set_registered_model_alias(world.name, "champion", "1")
    elif then == "none":
        world.client.delete_registered_model_alias(world.name, "champion")
    result = world.call()
    assert world.champion() == {"nothing": "2", "1": "1", "none": ""}[then]
    assert world.models.alias("candidate") is None
    assert len(world.done("train")) == 1
    if then == "nothing":
        assert result.kind == "promoted"
        return
    now_is = "version 1 is the champion" if then == "1" else "there is no champion"
    assert result.kind == "rejected"
    assert result.text.endswith(f"it was promoted, and rolled back by hand: {now_is}")
    assert world.tags("2")["retrain.decision"] == "rejected"
    assert "rolled back by hand" in world.tags("2")["retrain.reasons"]


_set_alias = MlflowClient.set_registered_model_alias


def fail_to_promote(self, name: str, alias: str, version: str) -> None:
    """A server that stops answering when the candidate is to be the champion."""
    if alias == "champion":
        fail()
    _set_alias(self, name, alias, version)


@pytest.mark.parametrize("phase", ["evaluated", "decided"])
def test_other_settings_of_the_comparison_evaluate_anew(file_world, monkeypatch, phase):
    """They change between a call that was killed and the next one."""
    world = file_world
    world.arrive("new", 0.6, 0.6, 0.6)
    with monkeypatch.context() as patch:
        if phase == "evaluated":
            before_state(patch, "decided", fail)
        else:
            patch.setattr(MlflowClient, "set_registered_model_alias", fail_to_promote)
        with pytest.raises((MlflowException, UserError), match="no connection"):
            world.call()
    assert world.attempt().phase == phase
    assert world.call(comparison=ComparisonConfig(max_images=3)).kind == "promoted"
    assert (len(world.done("train")), len(world.done("evaluate"))) == (1, 4)


def test_a_candidate_that_is_deleted_is_given_up(file_world, monkeypatch, caplog):
    world = file_world
    world.arrive("new", 0.6, 0.6, 0.6)
    with monkeypatch.context() as patch:
        patch.setattr(World, "evaluate", fail)
        with pytest.raises(MlflowException):
            world.call()
    world.client.delete_model_version(world.name, "2")
    result = world.call()
    assert "is given up: version 2 was deleted" in caplog.text
    assert (result.kind, world.champion()) == ("promoted", result.version)
    assert [d["kind"] for d in world.decisions()] == ["decision", "given up", "decision"]


def test_a_version_whose_logged_model_is_deleted_is_read_without_metrics(file_world):
    world = file_world
    (version,) = world.models.versions()
    assert version.metrics == {"val/miou": 0.5}
    world.client.delete_logged_model(version.source.removeprefix("models:/"))
    (version,) = world.models.versions()
    assert version.metrics == world.models.get("1").metrics == {}
    assert world.call().kind == "unchanged"


def test_a_champion_that_changes_meanwhile_is_compared_with(file_world, monkeypatch):
    """Somebody rolls back between the evaluation and the promotion."""
    world = file_world
    world.arrive("good", 0.8, 0.8, 0.8)
    assert world.call().version == "2"
    world.arrive("new", 0.82, 0.82, 0.82)

    def roll_back_once():
        if world.champion() == "2":
            world.retraining().rollback()

    before_state(monkeypatch, "decided", roll_back_once)
    result = world.call()
    assert result.kind == "promoted"
    assert world.tags("3")["replaced"] == "1"
    assert "0.8200 against the champion's 0.5000" in result.text


def test_validation_shards_that_change_under_way_are_no_comparison(file_world, monkeypatch):
    world = file_world
    world.arrive("new", 0.6, 0.6, 0.6)
    path = world.folder / "data.json"
    evaluate = World.evaluate

    def and_change(self, checkpoint):
        if not world.done("changed"):
            world.note("changed")
            path.write_text(path.read_text().replace("v1", "v2"))
        return evaluate(self, checkpoint)

    monkeypatch.setattr(World, "evaluate", and_change)
    with pytest.raises(UserError, match="validation shards changed while the models"):
        world.call()
    assert world.champion() == "1"
    assert world.call().kind == "promoted"
    # Both were evaluated anew; the training was not.
    assert (len(world.done("train")), len(world.done("evaluate"))) == (1, 4)
    assert world.tags("2")["validation.idd"] == "v2"


def test_an_unfinished_training_is_given_up_when_its_data_changed(file_world, monkeypatch):
    world = file_world
    world.arrive("new", 0.6, 0.6, 0.6)
    with monkeypatch.context() as patch:
        patch.setattr(World, "train", lambda *_: (_ for _ in ()).throw(UserError("full disk")))
        with pytest.raises(UserError, match="full disk"):
            world.call()
    before = world.attempt()
    world.arrive("newer", 0.7, 0.7, 0.7)
    assert world.call().kind == "promoted"
    assert world.attempt().run_name != before.run_name
    assert [d["kind"] for d in world.decisions()] == ["decision", "given up", "decision"]


def test_no_validation_shards_is_told(file_world):
    world = file_world
    path = world.folder / "data.json"
    content = json.loads(path.read_text()) | {"validation": {}}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="without them no model can be told to be better"):
        world.call()


def test_a_champion_that_is_just_being_changed_is_not_changed(file_world):
    world = file_world
    world.arrive("new", 0.6, 0.6, 0.6)
    with locked(world.storage, "champion.lock", LockConfig(), "the champion"):
        with pytest.raises(RetrainLocked, match=r"champion.lock: the champion of .* is locked"):
            world.call()
        with pytest.raises(RetrainLocked, match=r"champion.lock: the champion of .* is locked"):
            world.retraining().rollback()
    assert world.champion() == "1"
    assert world.call().kind == "promoted"
    assert len(world.done("train")) == 1


def test_a_held_lock_refuses_and_says_who(file_world):
    world = file_world
    with locked(world.storage, "retrain.lock", LockConfig(), "it"):
        with pytest.raises(RetrainLocked, match=r"process \d+ on .*, since 20.*, until 20"):
            world.call()
    assert RetrainLocked.exit_code == 75
    assert world.call().kind == "unchanged"


def test_a_person_changes_the_champion_under_the_same_lock(file_world):
    world = file_world

    def by_hand(action: Action, **words: str) -> str:
        config = RegistryJobConfig(
            action=action,
            registry=RegistryConfig(name=world.name),
            tracking=TrackingConfig(uri=world.uri),
            **words,
        )
        (version,) = change_registry(config) or [None]
        return version.version if version else ""

    world.arrive("new", 0.6, 0.6, 0.6)
    assert world.call().version == "2"
    changes: list[tuple[Action, dict[str, str]]] = [
        ("promote", {"version": "1"}),
        ("roll_back", {}),
        ("remove_alias", {"alias": "champion"}),
        ("register", {"checkpoint": str(world.checkpoint), "alias": "champion"}),
    ]
    with locked(world.storage, "champion.lock", LockConfig(), "the champion"):
        for action, words in changes:
            with pytest.raises(RetrainLocked, match=r"process \d+ on .*, since 20.*, until 20"):
                by_hand(action, **words)
        assert by_hand("promote", version="1", alias="candidate") == "1"
    assert world.champion() == "2"
    assert (by_hand("roll_back"), world.champion()) == ("1", "1")
    assert (by_hand("promote", version="2"), world.champion()) == ("2", "2")
    assert list(world.storage.list("champion.lock")) == []
    world.models.set_state_folder(str(world.folder / "of another machine"))
    with pytest.raises(UserError, match=r"its locks in .*of another machine, which is not on this"):
        by_hand("roll_back")
    assert world.champion() == "2"

"""Settings within mappings, optional groups and words without --KEY; the rest is in test_cli.py."""

import pytest

from jobs import import_official, predict, registry
from jobs.cli import parse
from jobs.mistakes import options
from pipeline.data.prepare.config import PrepareConfig
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig
from pipeline.training.config import TrainMixConfig

EVALUATE = ["--checkpoint", "x", "--protocol", "unified"]
GROUP = "must be a group of settings: write"


@pytest.mark.parametrize(
    ("config_class", "words", "message"),
    [
        (PrepareConfig, ["--own.shop.rot=x"], "own.shop.rot: no such key; did you mean 'own.shop."),
        (PrepareConfig, ["--own", "{shop: {rot: x}}"], "own.shop.rot: no such key; did you mean"),
        (PrepareConfig, ["--own.shop=x"], f"own.shop=x: {GROUP} own.shop.KEY"),
        (PrepareConfig, ["--own.shop.val_fraction=x"], "own.shop.val_fraction=x: must be a number"),
        (PrepareConfig, ["--own.A/b.root=x", "--out=x"], "own.A/b: must be lower-case letters"),
        (EvaluateConfig, [*EVALUATE, "--other.polcy=x"], "did you mean 'other.policy'?"),
        (EvaluateConfig, [*EVALUATE, "--other.policy=no"], "other.policy=no: must be one of none"),
        (EvaluateConfig, [*EVALUATE, "--other=x"], f"other=x: {GROUP} other.KEY"),
        (EvaluateConfig, [*EVALUATE, "--other.threshold=7"], "other.threshold=7.0: must lie"),
        (EvaluateConfig, [*EVALUATE, "--datasets=[a, 3]"], "datasets=[a, 3]: must be a list of te"),
        (TrainMixConfig, ["--data.caps.idd=x"], "data.caps.idd=x: must be a whole number"),
        (TrainMixConfig, ["--train.lr=null"], "train.lr=null: must be a number: correct it"),
        (TrainMixConfig, ["--train={lr: x}"], "train.lr=x: must be a number"),
        (TrainMixConfig, ["--run.nmae"], "run.nmae: no such key; did you mean 'run.name'?"),
    ],
)
def test_a_mistake_names_the_whole_key(config_class, words, message):
    with pytest.raises(UserError) as error:
        parse(config_class, words)
    assert message in str(error.value)
    assert "class" not in str(error.value)


def test_a_recipe_may_have_dotted_keys_and_an_option_a_whole_group(tmp_path):
    (tmp_path / "recipe.yaml").write_text("train.lr: '0.5'\ntrain.steps: 9\n")
    train = parse(TrainMixConfig, ["--config", str(tmp_path / "recipe.yaml")]).train
    assert (train.lr, train.steps) == (0.5, 9)
    assert parse(TrainMixConfig, ["--train", "{steps: 7}"]).train.steps == 7
    (tmp_path / "group.yaml").write_text("steps: 8\n")
    assert parse(TrainMixConfig, ["--train", str(tmp_path / "group.yaml")]).train.steps == 8
    (tmp_path / "group.yaml").write_text("stesp: 8\n")
    with pytest.raises(UserError, match=r"train\.stesp: no such key; did you mean 'train\.steps'"):
        parse(TrainMixConfig, ["--train", str(tmp_path / "group.yaml")])


def test_null_is_refused_where_the_type_does_not_allow_it(tmp_path):
    (tmp_path / "recipe.yaml").write_text("train: {test_fold: null}\n")
    assert (
        parse(TrainMixConfig, ["--config", str(tmp_path / "recipe.yaml")]).train.test_fold is None
    )
    (tmp_path / "recipe.yaml").write_text("train: null\n")
    with pytest.raises(UserError, match=f"train=null: {GROUP} train.KEY"):
        parse(TrainMixConfig, ["--config", str(tmp_path / "recipe.yaml")])


def test_words_without_a_key_are_settings_and_need_no_quotes():
    words = ["a [1].png", "b: c", "--checkpoint=x", "--probabilities"]
    config = parse(predict.PredictConfig, words, bare=predict.BARE)
    assert (config.images, config.probabilities) == (("a [1].png", "b: c"), True)
    words = ["--checkpoint=x", "--images=[a, b]", "--overlay", "false"]
    config = parse(predict.PredictConfig, words, bare=predict.BARE)
    assert (config.images, config.overlay) == (("a", "b"), False)
    bare = {"checkpoint": {"nargs": "?"}}
    config = parse(import_official.ImportConfig, ["l.ckpt", "--out=o", "--keep_text"], bare=bare)
    assert (config.checkpoint, config.keep_text) == ("l.ckpt", True)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["register", "DIR"], "checkpoint", "DIR"),
        (["promote", "3"], "version", "3"),
        (["promote", "@candidate", "--alias=x"], "version", "@candidate"),
        (["remove_alias", "x"], "alias", "x"),
        (["--action=promote", "--version=3"], "version", "3"),
    ],
)
def test_the_word_after_an_action_of_the_registry_is_what_it_acts_on(words, key, value):
    config = parse(registry.RegistryJobConfig, words, bare=registry.BARE)
    assert getattr(config, key) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["promote", "1", "2"], "unrecognized arguments: 2: write --KEY VALUE or --KEY=VALUE"),
        (["promte", "1"], "action=promte: must be one of list, .*; did you mean 'promote'"),
    ],
)
def test_a_word_too_many_and_an_unknown_action_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        parse(registry.RegistryJobConfig, words, bare=registry.BARE)


def test_options_of_a_command_line():
    words = ["a", "--b", "1", "--c=", "--d", "--e.f", "-1", "--g=x=y"]
    found = list(options(words))
    assert [key for key, _ in found] == ["", "b", "c", "d", "e.f", "g"]
    assert [text for key, text in found if key != "d"] == ["a", "1", "", "-1", "x=y"]

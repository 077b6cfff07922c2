import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jobs.cli import build_parser, main, parse, start_ray
from model.errors import ModelError
from pipeline.data.prepare.config import PrepareConfig
from pipeline.errors import Terminated, UserError
from pipeline.ray_internals import SUBMITTED_JOB
from pipeline.training.config import TrainMixConfig
from tests.support.cpu_cost import costs_at_most

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "jobs/recipes").glob("**/*.yaml"))


def config_class(recipe: Path) -> type:
    """The job that a recipe is for, by its keys."""
    return PrepareConfig if "roots" in yaml.safe_load(recipe.read_text()) else TrainMixConfig


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe of a few settings."""
    path = tmp_path / "recipe.yaml"
    values = {
        "run": {"name": "from-recipe"},
        "train": {"lr": 0.5, "other": {"share": 0.25}},
        "model": {"text": {"encoder": "stand-in"}, "backbone": {"kwargs": {"depth": 4}}},
        "data": {"weights": {"ade20k": 2.0}, "augment": {"scale": [0.75, 1.5]}},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_there_are_recipes():
    assert REPOSITORY / "jobs/recipes/demo.yaml" in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_its_printed_form_is_the_same(path, tmp_path, capsys):
    cls = config_class(path)
    arguments = ["--config", str(path)]
    config = parse(cls, arguments)
    assert isinstance(config, cls)
    assert config != parse_defaults(cls)
    with pytest.raises(SystemExit) as stop:
        build_parser(cls).parse_args([*arguments, "--print_config"])
    assert stop.value.code in (0, None)
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert parse(cls, ["--config", str(printed)]) == config


def parse_defaults(cls: type):
    return cls(out="out", roots={"idd": "idd"}) if cls is PrepareConfig else parse(cls, [])


def test_without_a_recipe_the_defaults_hold():
    assert parse(TrainMixConfig, []) == TrainMixConfig()


def test_the_recipe_overrides_the_defaults_and_the_command_line_the_recipe(recipe):
    config = parse(TrainMixConfig, ["--config", str(recipe)])
    defaults = TrainMixConfig()
    assert (config.train.lr, config.train.other.share) == (0.5, 0.25)
    assert config.train.other.drop == defaults.train.other.drop
    assert config.train.steps == defaults.train.steps
    assert config.data.weights == {"ade20k": 2.0}
    assert config.data.augment.scale == (0.75, 1.5)
    assert config.data.augment.crop_px == defaults.data.augment.crop_px
    assert config.model.backbone.kwargs == {"depth": 4}
    assert config.run.name == "from-recipe"

    arguments = ["--config", str(recipe), "--train.lr", "0.125", "--train.other.drop=0.75"]
    arguments += ["--data.weights", "size", "--run.seed", "9"]
    config = parse(TrainMixConfig, arguments)
    assert (config.train.lr, config.train.other.drop, config.train.other.share) == (
        0.125,
        0.75,
        0.25,
    )
    assert config.data.weights == "size"
    assert (config.run.name, config.run.seed) == ("from-recipe", 9)


def test_a_later_recipe_overrides_an_earlier_one(recipe, tmp_path):
    (tmp_path / "more.yaml").write_text("train: {steps: 7}\n")
    arguments = ["--config", str(recipe), "--config", str(tmp_path / "more.yaml")]
    config = parse(TrainMixConfig, arguments)
    assert (config.train.steps, config.train.lr) == (7, 0.5)


def test_single_weights_on_the_command_line_join_those_of_the_recipe(recipe):
    arguments = ["--config", str(recipe), "--data.weights", '{"ade20k": 1.0, "idd": 3.0}']
    assert parse(TrainMixConfig, arguments).data.weights == {"ade20k": 1.0, "idd": 3.0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.lrr", "1"], ("train.lrr: no such key", "did you mean 'train.lr'")),
        (["--trian.lr", "1"], ("trian.lr: no such key", "did you mean 'train.lr'")),
        (["--run.nmae=x"], ("run.nmae: no such key", "did you mean 'run.name'")),
        (["--data.augment.crop", "48"], ("data.augment.crop: no such key", "data.augment.crop_px")),
        (["--train.other.shar", "0.5"], ("train.other.shar: no such key", "train.other.share")),
        (["--train.lr", "fast"], ("train.lr", "fast")),
        (["--train.steps", "1.5"], ("train.steps", "1.5")),
        (["--train.optimizer", "adam"], ("train.optimizer", "adam", "adamw")),
        (["--train.lr", "-1"], ("train.lr=-1", "above 0")),
        (["--train.warmup_steps", "5", "--train.steps", "5"], ("train.warmup_steps=5", "below")),
        (["--train.batch_size", "3", "--cluster.num_workers", "2"], ("train.batch_size=3",)),
        (["--train.other.share", "2"], ("train.other.share=2", "between 0 and 1")),
        (["--data.weights", "equall"], ("data.weights='equall'", "did you mean 'equal'")),
        (["--data.augment.scale", "[2.0, 0.5]"], ("augment.scale=[2.0, 0.5]",)),
        (["--run.name", "../up"], ("run.name='../up'",)),
        (["--model.features", "0"], ("model.features=0",)),
        (["--model.backbone.hooks", "[3, 2, 1, 0]"], ("backbone.hooks=[3, 2, 1, 0]",)),
        (["--config", "nowhere.yaml"], ("nowhere.yaml",)),
    ],
)
def test_what_is_not_allowed_is_told_with_its_key(arguments, words):
    with pytest.raises((UserError, ModelError)) as error:
        parse(TrainMixConfig, arguments)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {lrr: 1}", ("train.lrr: no such key", "did you mean 'train.lr'")),
        ("trian: {lr: 1}", ("trian.lr: no such key", "did you mean 'train.lr'")),
        ("train: {other: {shar: 1}}", ("train.other.shar: no such key", "train.other.share")),
        ("data: {augment: {crop_pix: 48}}", ("data.augment.crop_pix: no such key", "crop_px")),
        ("model: {text: {encodr: x}}", ("model.text.encodr: no such key", "model.text.encoder")),
        ("train: {steps: many}", ("train.steps", "many")),
        ("train: 7", ("train=7", "must be a group of settings")),
        ("train: {other: 3}", ("train.other=3", "must be a group of settings")),
        ("train:\n  steps: 5\nrun: x", ("run=x: must be a group of settings",)),
        ("train: {lr: [", ("recipe.yaml",)),
        ("just words", ("recipe.yaml",)),
    ],
)
def test_a_wrong_recipe_is_told_with_its_key(tmp_path, text, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises((UserError, ModelError)) as error:
        parse(TrainMixConfig, ["--config", str(path)])
    for word in words:
        assert word in str(error.value)


A_NUMBER = "must be a number: correct it, or leave the key out for 0.004"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lr: abc}", f"train.lr=abc: {A_NUMBER}"),
        ("train: {lr: [1]}", f"train.lr=[1]: {A_NUMBER}"),
        ("train: {lr: null}", f"train.lr=null: {A_NUMBER}"),
        ("train: {lr: .inf}", "train.lr=inf: must be above 0, and finite"),
        ("train: {clip_norm: .nan}", "train.clip_norm=nan: must be 0 or more"),
        ("train: {steps: 1.5}", "train.steps=1.5: must be a whole number: correct it"),
        ("train: {compile: maybe}", "train.compile=maybe: must be true or false"),
        (
            "train: {optimizer: adm}",
            "train.optimizer=adm: must be one of sgd, adamw; did you mean 'adamw'?",
        ),
        ("train: {test_fold: x}", "train.test_fold=x: must be a whole number or null"),
        ("data: {weights: [1]}", "data.weights=[1]: must be 'equal', 'size' or a mapping"),
        ("data: {weights: {ade20k: x}}", "data.weights={'ade20k': 'x'}: must be 'equal', 'size'"),
        ("data: {caps: [1]}", "data.caps=[1]: must be a mapping of names to whole numbers"),
        (
            "data: {augment: {scale: [1, 2, 3]}}",
            "data.augment.scale=[1, 2, 3]: must be a list of",
        ),
        (
            "model: {backbone: {hooks: 3}}",
            "model.backbone.hooks=3: must be a list of whole",
        ),
        ("train: 3", "train=3: must be a group of settings"),
        ("train: [1, 2]", "train=[1, 2]: must be a group of settings"),
        ("train: {learning_rate: 3}", "train.learning_rate: no such key; see --help"),
        ("1: 2", "--config recipe.yaml: 1: a key must be a word"),
        ("[1, 2]", "--config recipe.yaml: not a YAML mapping"),
        ("train: {lr: [", "--config recipe.yaml: not a YAML mapping"),
        ("", "--config recipe.yaml: not a YAML mapping"),
        ("!!python/object:os.system {}", "--config recipe.yaml: not a YAML mapping"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(text)
    assert main(TrainMixConfig, lambda _: None, ["--config", "recipe.yaml"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}")
    assert told.count("\n") == 1
    assert len(told) < 250
    for word in ("<class", "Parser key", "Union", "Traceback"):
        assert word not in told


ALIASES = "a: &a [1]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ALIASES, "more than 100000 values"),
        ("run: " + "[" * 100_000, "nested deeper"),
        ("run: &r {name: *r}", "stands for nothing"),
        ("train: {steps: " + "9" * 5000 + "}", "4300 digits"),
        ("".join(f"%TAG !a{n}! tag:x\n" for n in range(1000)) + "---\nrun: {}", "directives"),
        ("#" * 5_000_000, "larger than 4 MiB"),
        ("? [a, b]\n: c", "unhashable"),
        ("run: {name: '" + "{" * 19_000 + "'}", "opens more than 500 lists"),
    ],
    ids=range(8),
)
def test_a_recipe_that_swells_is_one_line_at_once(tmp_path, capsys, text, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with costs_at_most(100):
        assert main(TrainMixConfig, lambda _: None, ["--config", str(path)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert len(told) < 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "missing.yaml"], "missing.yaml: there is no such file: check the path\n"),
        (["--config", "."], ": is not a file: check the path\n"),
        (["--train", "3"], "train=3: must be a group of settings"),
        (["--train.lr", ""], "train.lr='': must be a number"),
        (["--train.lr", "[" * 50_000], "train.lr='[[["),
        (["--run.name", "- " * 50_000], "opens more than 500 lists"),
        (["--config", "[" * 50_000], "[[...: there is no such file"),
        (["--config", "~no-such-user/x"], "~no-such-user/x: there is no such file"),
        (["train.lr=3"], "unrecognized arguments: train.lr=3: write --KEY VALUE or --KEY=VALUE\n"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main(TrainMixConfig, lambda _: None, arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_help_keeps_the_lines_of_examples_and_begins_with_an_overview():
    example = '    python jobs/x.py --a 1\n    python jobs/x.py --b "2"'
    text = build_parser(TrainMixConfig, f"Does it.\n\n{example}\n", {"word": {}}).format_help()
    assert f"\n{example}\n" in text
    assert text.splitlines()[0].endswith(" [WORD] [--config RECIPE] [--KEY VALUE ...]")
    top = text.partition("options:")[0]
    for group in ("run", "data", "model", "train", "cluster", "tracking"):
        assert any(line.split()[:1] == [group] for line in top.splitlines())
    assert len(top.splitlines()) < 20


def test_exit_codes(capsys):
    seen = []
    assert main(TrainMixConfig, seen.append, ["--train.steps", "5"]) == 0
    assert seen[0].train.steps == 5
    assert main(TrainMixConfig, seen.append, ["--train.step", "5"]) == 2
    assert (
        capsys.readouterr().err == "error: train.step: no such key; did you mean 'train.steps'?\n"
    )
    assert len(seen) == 1

    def fails(config):
        raise UserError("data.shards=x: is empty")

    assert main(TrainMixConfig, fails, []) == 2
    assert capsys.readouterr().err == "error: data.shards=x: is empty\n"

    def breaks(config):
        raise KeyError("a defect of ours")

    with pytest.raises(KeyError, match="a defect of ours"):
        main(TrainMixConfig, breaks, [])

    def interrupted(config):
        raise KeyboardInterrupt

    assert main(TrainMixConfig, interrupted, []) == 130


PRINTS = """
import sys
from jobs.cli import main
from pipeline.training.config import TrainMixConfig
def prints(config):
    for _ in range(int(sys.argv[1])):
        print("stra\\xdfe \\u9053\\u8def \\udcff")
sys.exit(main(TrainMixConfig, prints, sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("how", "lines", "code"),
    [
        ("| head -n 1", "100000", 141),
        ("> /dev/full", "1", 2),
        ("> /dev/full", "100000", 2),
        (">&-", "1", 0),
    ],
)
def test_an_output_that_cannot_be_written_is_told_once(how, lines, code):
    command = f'"$@" {how}; exit ${{PIPESTATUS[0]}}'
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    env |= {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["bash", "-c", command, "-", sys.executable, "-c", PRINTS, lines],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    told = r"error: (the output|this machine): no space left on device: make room, or .*\n"
    assert re.fullmatch(told if code == 2 else "", done.stderr)
    if how == "| head -n 1":
        assert done.stdout == "stra\\xdfe \\u9053\\u8def \\udcff\n"


@pytest.mark.parametrize("name", ["ENOSPC", "ENAMETOOLONG", "EROFS", "EIO", "EACCES", "EDQUOT"])
def test_what_the_system_refuses_is_one_line(capsys, name):
    def fails(config):
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number), "/a\n/b")

    assert main(TrainMixConfig, fails, []) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: /a\\n/b: ")
    assert told.count(": ") == 3
    assert told.count("\n") == 1

    def breaks(config):
        raise FileNotFoundError(errno.ENOENT, "No such file", "our own")

    with pytest.raises(FileNotFoundError):  # It may be a defect of ours.
        main(TrainMixConfig, breaks, [])


def test_why_a_submitted_job_ends_is_a_line_of_its_log(monkeypatch, capsys):
    def end(error: BaseException) -> str:
        def run(config):
            raise error

        main(TrainMixConfig, run, [])
        return capsys.readouterr().err

    ends = {
        "error: data.shards=x: is 5 % too small": UserError("data.shards=x: is 5 % too small"),
        "error: /a\\nb: no space": OSError(errno.ENOSPC, "no space", "/a\nb"),
        "interrupted": KeyboardInterrupt(),
        "stopped": Terminated("stopped"),
    }
    for message, error in ends.items():
        assert end(error).startswith(message)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    for message, error in ends.items():
        assert end(error).startswith(message)  # On a node of a cluster, but from a terminal of it.
    monkeypatch.setenv(SUBMITTED_JOB, "{}")
    for message, error in ends.items():
        told = end(error)
        before, found, _ = told.partition(f" {os.uname().nodename} driver: {message}")
        assert found, told
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", before), told
        assert told.count("\n") == 1


def test_train_mix_tells_a_mistake_in_one_line_and_starts_nothing(tmp_path):
    command = [sys.executable, str(REPOSITORY / "jobs/train_mix.py"), "--train.bach_size", "4"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: train.bach_size: no such key; did you mean 'train.batch_size'?"]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_waits_for_nodes_no_longer_than_allowed(local_ray, monkeypatch):
    monkeypatch.setenv("LSEG_CLUSTER_WAIT_S", "1.5")
    began = time.monotonic()
    with pytest.raises(UserError, match="cluster CPUs=4: this job holds 64 at once"):
        start_ray(64)
    with pytest.raises(UserError, match="cluster GPUs=0: this job holds 1 at once"):
        start_ray(1, 1)
    assert 3 <= time.monotonic() - began < 30
    start_ray(4)


def test_wait_for_nodes_must_be_a_number(local_ray, monkeypatch):
    monkeypatch.setenv("LSEG_CLUSTER_WAIT_S", "soon")
    with pytest.raises(UserError, match="LSEG_CLUSTER_WAIT_S=soon: must be a number of seconds"):
        start_ray(64)

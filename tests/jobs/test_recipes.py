"""Every shipped recipe parses, says what it is, and makes a dry step."""

import re
from pathlib import Path

import pytest

from jobs.cli import main, parse
from jobs.train_mix import JobConfig, run
from model.packages import BACKBONE_PACKAGES
from pipeline.data.taxonomy import DATASETS
from pipeline.training.config import TrainMixConfig
from pipeline.training.driver.dry_run import dry_run
from pipeline.training.plan import make_plan
from tests.support.mini_shards import write_manifests

RECIPES = sorted((Path(__file__).resolve().parents[2] / "jobs" / "recipes").glob("*.yaml"))


def test_the_recipes_that_pages_and_sweeps_name_are_there():
    root = RECIPES[0].parents[2]
    pages = [root / "README.md", *(root / "docs").rglob("*.md"), *(root / "infra").rglob("*.*")]
    pages += [*(root / "jobs" / "sweeps").iterdir(), *RECIPES]
    text = "".join(page.read_text() for page in pages if page.suffix in (".md", ".yaml", ".sh"))
    named = set(re.findall(r"jobs/recipes/([a-z0-9_]+)\.yaml", text))
    assert named == {recipe.stem for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_a_header(recipe):
    header = "".join(line for line in recipe.read_text().splitlines(True) if line.startswith("#"))
    assert "Reproduces:" in header
    assert "Cost:" in header
    assert f"jobs/recipes/{recipe.name}" in header


def dry(recipe: Path) -> object:
    """The recipe, slow unless it is the first of its backbone: each takes seconds of CPU."""
    if recipe.stem == "photos":
        lacks = not BACKBONE_PACKAGES["efficientnet-lite0"].version
        mark = pytest.mark.skipif(lacks, reason="the extra photos is not installed")
        return pytest.param(recipe, id=recipe.stem, marks=mark)
    is_first = recipe.stem in ("demo", "coco20i_resnet101", "mix7_vitl16", "ade20k_vitb32")
    return pytest.param(recipe, id=recipe.stem, marks=() if is_first else pytest.mark.slow)


@pytest.mark.parametrize("recipe", [dry(recipe) for recipe in RECIPES])
def test_a_recipe_makes_a_dry_step(recipe, capsys):
    assert main(JobConfig, run, ["--config", str(recipe), "--dry_run", "true"]) == 0
    text = capsys.readouterr().out
    parameters = float(re.search(r"parameters +([\d.]+) M", text).group(1))
    memory = float(re.search(r"about ([\d.]+) GiB", text).group(1))
    config = parse(TrainMixConfig, ["--config", str(recipe)])
    sizes = {"vit_large": (304, 360), "vit_base": (90, 120), "vit_tiny": (0.1, 2)}
    sizes |= {"resnet101": (50, 70), "convnext_atto": (0.05, 2), "tf_efficientnet_lite0": (3, 6)}
    name = next(key for key in sizes if config.model.backbone.name.startswith(key))
    # The text tower of CLIP ViT-B has 63.4 M, and is one of the network's where it is trained.
    tower = 63.4 if config.train.text != "frozen" else 0.0
    assert sizes[name][0] < parameters - tower < sizes[name][1]
    assert (
        memory >= int(10 * 3 * 4 * parameters * 1e6 / 2**30) / 10
    )  # Weights, gradients, a moment.
    assert re.search(r"ETA +\d+[hms]", text)


def test_memory_depends_on_the_precision(capsys):
    recipe = next(path for path in RECIPES if path.stem == "demo")
    memory = {}
    for precision in ("bf16", "fp32", "fp64"):
        config = parse(TrainMixConfig, ["--config", str(recipe), "--train.precision", precision])
        memory[precision] = dry_run(config, None).memory_gib
    assert memory["fp64"] == 2 * memory["fp32"]
    assert memory["bf16"] < 0.7 * memory["fp32"]


@pytest.fixture(scope="module")
def all_seven(tmp_path_factory) -> Path:
    """Manifests of all seven datasets in both splits."""
    folder = tmp_path_factory.mktemp("seven")
    for split in ("train", "val"):
        write_manifests(folder, DATASETS, split)
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_validates_what_it_trains(recipe, all_seven):
    # These manifests show every class, which leaves none for distractors.
    argv = ["--config", str(recipe), "--train.distractors.count", "0"]
    config = parse(TrainMixConfig, [*argv, "--data.shards", str(all_seven)])
    if config.train.test_fold is not None or config.data.augment.squash:
        assert (config.train.validate_every, config.train.keep_best) == (0, "")
        return  # Few-shot pairs, which have no split to validate on.
    val = make_plan(config).validation
    assert val is not None
    if recipe.stem.startswith("ade20k"):
        assert (set(val.manifests), config.train.keep_best) == ({"ade20k"}, "val/ade20k/miou")
    else:
        assert set(val.manifests) == {*DATASETS}
        assert config.train.keep_best in ("", "val/miou")


def test_a_dry_run_refuses_what_cannot_be_built(capsys):
    recipe = next(path for path in RECIPES if path.stem == "one_gpu")
    argv = ["--config", str(recipe), "--dry_run", "true", "--model.backbone.name", "vit_smal"]
    assert main(JobConfig, run, argv) == 2
    assert "vit_smal" in capsys.readouterr().err

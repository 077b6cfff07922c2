"""PASCAL-5i and FSS-1000 from official layouts to zero-shot figures, with the shipped recipes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.cli import parse
from pipeline.data.prepare.config import PrepareConfig
from pipeline.data.prepare.run import prepare
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.launch import evaluate
from pipeline.training.config import TrainMixConfig
from pipeline.training.driver.launch import plan_run, train
from tests.support.few_shot_roots import write_fss, write_voc

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
BACKBONE = "{patch_size: 8, depth: 4, embed_dim: 32, num_heads: 2, img_size: 48}"
SMALL = [
    *("--model.backbone.name", "vit_tiny_patch16_224", "--model.backbone.pretrained", "false"),
    *("--model.backbone.kwargs", BACKBONE, "--model.text", "{encoder: stand-in}"),
    *("--model.features", "16", "--data.augment.crop_px", "48", "--data.num_loaders", "1"),
    *("--data.loader_cpus", "0.25", "--train.passes", "0", "--train.steps", "40"),
    *("--train.batch_size", "8", "--train.optimizer", "adamw", "--train.lr", "0.003"),
    *("--train.log_every", "10", "--train.checkpoint_every", "40", "--cluster.num_workers", "1"),
    *("--cluster.cpus_per_worker", "0.5", "--cluster.threads_per_worker", "1"),
    *("--cluster.use_gpu", "false"),
]


def paint(root: Path) -> None:
    """Shows what the masks say: every class bright on dark noise."""
    rng = np.random.default_rng(0)
    masks = [*root.glob("VOC2012/SegmentationClassAug/*.png"), *root.glob("FSS-1000/*/*.png")]
    assert masks
    for path in masks:
        with Image.open(path) as image:
            ids = np.array(image)
        bright = (ids > 0) & ((ids < 255) | ("FSS-1000" in path.parts))
        pixels = rng.integers(0, 60, (*ids.shape, 3)) + bright[..., None] * [180, 150, 20]
        folder = Path(str(path.parent).replace("SegmentationClassAug", "JPEGImages"))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{path.stem}.jpg", quality=95)


# Trains and evaluates twice, which only whole jobs can show to fit each other.
@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("benchmark", "recipe", "trained", "tested"),
    [
        ("pascal-5i", "pascal5i_vitl16", ["bus", "car", "diningtable", "pottedplant"], "aeroplane"),
        ("fss-1000", "fss1000_resnet101", ["ac_wall", "bell", "zucchini"], "abe's_flyingfish"),
    ],
)
def test_a_recipe_trains_what_its_protocol_tests(tmp_path, benchmark, recipe, trained, tested):
    if benchmark == "fss-1000":
        write_fss(tmp_path, tuple(trained), per_class=4)
    else:
        write_voc(tmp_path, (64, 48))
        # The pairs of fold 0, which training leaves out, are what it tests.
        pairs = (tmp_path / "splits/pascal/trn/fold0.txt").read_text()
        (tmp_path / "splits/pascal/val").mkdir()
        (tmp_path / "splits/pascal/val/fold0.txt").write_text(pairs)
    paint(tmp_path)
    root, splits, shards = str(tmp_path), str(tmp_path / "splits"), str(tmp_path / "shards")
    given = [f"--few_shot.{benchmark}", root, "--few_shot_splits", splits, "--out", shards]
    prepare(parse(PrepareConfig, given))

    places = ["--data.shards", shards, "--run.storage", str(tmp_path / "runs")]
    tracking = ["--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    config = ["--config", str(RECIPES / f"{recipe}.yaml")]
    outcome = train(plan_run(parse(TrainMixConfig, [*config, *SMALL, *places, *tracking])))
    assert outcome.metrics["step"] == 40
    assert outcome.metrics["train/loss"] < 0.5  # ln 2 = 0.69 without any training.
    for name in ("labels.txt", "texts.txt"):
        assert (Path(outcome.checkpoint) / name).read_text().splitlines() == ["others", *trained]

    view = ["--geometry", "{mode: squash, window_px: 48}", "--max_images", "6", "--examples", "0"]
    view += ["--workers", "{num_workers: 1, cpus_per_worker: 0.5, use_gpu: false}"]
    asked = ["--protocol", benchmark, f"--roots.{benchmark}", root, "--folds", "[0]"]
    asked += ["--checkpoint", outcome.checkpoint, "--out", str(tmp_path / "evaluation"), *tracking]
    if benchmark != "fss-1000":
        asked += ["--splits", splits]
    report = evaluate(parse(EvaluateConfig, [*asked, *view])).report
    assert report["zero_shot"] != "no"
    assert tested in next(tmp_path.glob("evaluation/**/per_class.csv")).read_text()
    # Every class is bright on dark noise, also the one that was never trained. The class everywhere
    # would score its share of the pixels, a quarter in FSS-1000's pictures.
    assert report["figures"]["miou"] > 0.5

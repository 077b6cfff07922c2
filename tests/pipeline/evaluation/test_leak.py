"""What the leak check says of checkpoints with a known past."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.checkpoints.provenance import (
    Provenance,
    open_checkpoint,
    read_provenance,
    unchanged_manifests,
)
from pipeline.data.datasets.suite import suite_table
from pipeline.data.datasets.suite.readers import LAYOUTS
from pipeline.data.shards.format import Manifest, SampleRecord, ShardRecord
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.leak import check_leaks, coco_number
from pipeline.evaluation.plan import ProtocolPlan
from pipeline.evaluation.protocols import make_plan
from tests.pipeline.data.datasets.suite.test_readers import write


def manifest(dataset: str, split: str, keys: list[str]) -> Manifest:
    samples = tuple(SampleRecord(key, 512 * i, 512, 4, 4) for i, key in enumerate(keys))
    shard = ShardRecord(f"{dataset}.tar", 10**6, "0" * 64, samples)
    return Manifest(1, dataset, split, "mseg-194", "f", "s", {}, (shard,), (0,) * 194, ())


def past(labels: tuple[str, ...], **manifests: Manifest | None) -> Provenance:
    tags = {f"manifest.{name}": "f" for name in manifests}
    known = {name: m for name, m in manifests.items() if m is not None}
    return Provenance(labels, {"data": {"train_split": "train"}}, tags, known)


@pytest.fixture
def coco_plan(tmp_path) -> tuple[EvaluateConfig, ProtocolPlan]:
    """COCO-20i with one image for each class of fold 0, numbers 0 to 19."""
    root = tmp_path / "COCO2014"
    for number, class_id in enumerate(range(0, 80, 4)):
        image = root / f"val2014/COCO_val2014_{number:012d}.jpg"
        mask = root / f"annotations/val2014/COCO_val2014_{number:012d}.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(image)
        Image.fromarray(np.full((4, 4), class_id + 1, np.uint8)).save(mask)
    config = EvaluateConfig(
        checkpoint="x", protocol="coco-20i", roots={"coco-20i": str(root)}, folds=(0,)
    )
    return config, make_plan(config, ())


def test_an_unknown_past_is_no_zero_shot(coco_plan):
    report = check_leaks(*coco_plan, Provenance((), {}, {}))
    assert report.zero_shot == "unknown"
    assert "does not say" in report.reasons[0]


def test_classes_by_their_words_and_mseg_names(coco_plan):
    # aeroplane is MSeg's airplane; "hotdog" its "hot_dog"; tiger is not tested.
    report = check_leaks(*coco_plan, past(("airplane", "hot_dog", "tiger"), ade20k=None))
    assert report.seen_classes["fold0"] == ("aeroplane", "hotdog")
    assert report.num_classes["fold0"] == 20
    assert report.zero_shot == "no"
    clean = check_leaks(*coco_plan, past(("tiger",), ade20k=None))
    assert (clean.zero_shot, clean.reasons) == ("yes", [])


@pytest.mark.parametrize(
    ("trained", "tested"),
    [("traffic_sign", "stopsign"), ("bag", "handbag"), ("donut", "doughnut"), ("tv", "tvmonitor")],
)
def test_names_that_differ_from_msegs_are_one_class(coco_plan, trained, tested):
    config, plan = coco_plan
    (part,) = plan.parts
    renamed = replace(plan, parts=(replace(part, strata=(tested, *part.strata[1:])),))
    assert check_leaks(config, renamed, past((trained,), ade20k=None)).seen_classes["fold0"] == (
        tested,
    )


def test_pictures_of_ones_own_dataset_are_not_known(coco_plan):
    report = check_leaks(*coco_plan, past(("shelf",), my_voc=None))
    assert report.seen_images == {"fold0": None}
    assert report.zero_shot == "unknown"
    assert "trained on my_voc" in " ".join(report.reasons)


def test_coco_stuff_is_known_by_its_name_and_its_classes(tmp_path):
    names = tuple(entry.name for entry in suite_table("coco-stuff-171"))

    def said(protocol: str, labels: tuple[str, ...], name: str = "coco_stuff") -> tuple:
        write(tmp_path / protocol, protocol, LAYOUTS[protocol][0], np.array([[0, 3, -1]]))
        roots = {protocol: str(tmp_path / protocol)}
        config = EvaluateConfig(checkpoint="x", protocol=protocol, roots=roots)  # type: ignore[arg-type]
        report = check_leaks(config, make_plan(config, ()), past(labels, **{name: None}))
        return report.seen_images[protocol], " ".join(report.reasons)

    assert "in-domain: trained on coco_panoptic" in said("coco-stuff-171", names)[1]
    assert said("a-150", names)[0] == 0
    assert "Flickr" in said("pas-20", names)[1]
    # Somebody else's dataset, or one of that name that is not it.
    assert "nothing is known" in said("a-150", names, "mine")[1]
    assert "nothing is known" in said("a-150", (*names, "shoe rack"))[1]


def test_classes_are_known_where_the_datasets_are_too_many_to_name(
    coco_plan,
):
    def trained_on(*labels: str) -> Provenance:
        return Provenance(("others", *labels), {}, {"manifests": "0123456789abcdef (60 datasets)"})

    other_fold = check_leaks(*coco_plan, trained_on("bicycle", "hotdog"))
    assert other_fold.seen_classes["fold0"] == ("hotdog",)
    assert other_fold.zero_shot == "no"
    same_fold = check_leaks(*coco_plan, trained_on("bicycle"))
    assert same_fold.zero_shot == "unknown"
    assert "images are not compared" in same_fold.reasons[0]


def test_pictures_by_cocos_number(coco_plan):
    config, plan = coco_plan
    keys = [f"{number:012d}" for number in (0, 7, 99)]
    report = check_leaks(
        config, plan, past(("tiger",), coco_panoptic=manifest("coco_panoptic", "train", keys))
    )
    expected = sum(
        episode.image.endswith(("000000000000.jpg", "000000000007.jpg"))
        for episode in plan.parts[0].source.chosen  # type: ignore[attr-defined]
    )
    assert 0 < expected < 1000
    assert report.seen_images["fold0"] == expected
    assert report.zero_shot == "no"
    gone = check_leaks(config, plan, past(("tiger",), coco_panoptic=None))
    assert gone.seen_images["fold0"] is None
    assert gone.zero_shot == "unknown"
    assert "most of val2014" in gone.reasons[0]


def test_numbers_of_coco():
    assert coco_number("val2014/COCO_val2014_000000429717.jpg") == 429717
    assert coco_number("000000429717") == 429717
    assert coco_number("2007_000033") is None


def test_training_pictures_of_shards(base_config, tiny_checkpoint):
    _, provenance = open_checkpoint(str(tiny_checkpoint))
    assert provenance.datasets == ("ade20k", "cityscapes", "coco_panoptic")
    assert set(provenance.manifests) == set(provenance.datasets)
    assert provenance.step == 7
    train = replace(base_config, split="train")
    report = check_leaks(train, make_plan(train, provenance.labels), provenance)
    assert report.seen_images == report.num_images == dict.fromkeys(provenance.datasets, 8)
    report = check_leaks(base_config, make_plan(base_config, provenance.labels), provenance)
    assert report.seen_images == dict.fromkeys(provenance.datasets, 0)
    assert set(base_config.roots) == set()
    assert "horse" not in report.seen_classes["ade20k"]


def test_changed_shards_do_not_count_as_the_trainings(tiny_checkpoint, tmp_path):
    for name in ("config.yaml", "labels.txt", "provenance.json"):
        (tmp_path / name).write_text((tiny_checkpoint / name).read_text())
    tags = json.loads((tmp_path / "provenance.json").read_text())
    (tmp_path / "provenance.json").write_text(json.dumps({**tags, "manifest.ade20k": "0" * 16}))
    found = unchanged_manifests(read_provenance(tmp_path))
    assert set(found) == {"cityscapes", "coco_panoptic"}
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["run"]["name"] == "tiny"

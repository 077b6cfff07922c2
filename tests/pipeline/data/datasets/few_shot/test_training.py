"""The training pairs of the few-shot benchmarks, from HSNet's lists to stored labels."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets.few_shot import FEW_SHOT_SETS, open_few_shot
from pipeline.data.datasets.few_shot.training import (
    PairReader,
    class_of,
    open_training,
    without_fold,
)
from pipeline.data.ingest.stream import SampleReader, open_corpus
from pipeline.data.prepare.config import PrepareConfig
from pipeline.data.prepare.run import prepare
from pipeline.errors import UserError
from pipeline.storage.open import open_storage
from tests.support.few_shot_roots import save_jpg, save_png, write_fss, write_voc


def readers(benchmark: str, root: Path) -> dict[str, PairReader]:
    opened = open_training(benchmark, str(root), open_storage(str(root / "splits")))
    return {reader.name: reader for reader in opened}


def test_pascal_pairs_are_the_class_against_all_others(tmp_path):
    write_voc(tmp_path)
    found = readers("pascal-5i", tmp_path)
    # One class of each fold, and a second one (car, 6) in the pictures of the bus (5).
    assert list(found) == [f"pascal_5i_{i:03d}" for i in (0, 5, 6, 10, 15)]
    for name, class_id in (("pascal_5i_005", 5), ("pascal_5i_006", 6)):
        sources = found[name].listing("train").sources
        assert [source.key for source in sources] == ["2007_000002", "2007_000003"]
        ids = np.asarray(_voc_ids(tmp_path, "2007_000002"))
        label = found[name].native_label(sources[0])
        # Other classes are background, and borders (255) as well.
        assert np.array_equal(label, ids == class_id + 1)
        assert 255 in ids
    assert found["pascal_5i_005"].listing("val").sources == ()


def test_the_lists_of_pascal_say_which_pairs_are_there(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "VOC2012/SegmentationClassAug/2007_000003.png").unlink()
    listing = readers("pascal-5i", tmp_path)["pascal_5i_005"].listing("train")
    assert [source.key for source in listing.sources] == ["2007_000002"]
    assert [left.name for left in listing.left_out] == ["VOC2012/JPEGImages/2007_000003.jpg"]


@pytest.mark.parametrize("line", ["2007_000000__06", "../../etc__01"])
def test_a_damaged_list_of_pascal_is_told(tmp_path, line):
    write_voc(tmp_path)
    (tmp_path / "splits/pascal/trn/fold0.txt").write_text(line)
    with pytest.raises(UserError, match=r"fold0\.txt: .*must be NAME__CLASS"):
        readers("pascal-5i", tmp_path)


def test_coco_pairs_come_from_the_lists_of_two_folds(tmp_path):
    lists = {
        fold: {c: [f"train2014/COCO_train2014_{c:012d}.jpg"] for c in range(80) if c % 4 != fold}
        for fold in (0, 1)
    }
    folder = tmp_path / "splits/coco/trn"
    folder.mkdir(parents=True)
    (tmp_path / "COCO2014/val2014").mkdir(parents=True)
    (tmp_path / "COCO2014/annotations/val2014").mkdir(parents=True)
    for fold, names in lists.items():
        (folder / f"fold{fold}.pkl").write_bytes(pickle.dumps(names))
    for c in range(80):
        name = f"train2014/COCO_train2014_{c:012d}"
        save_jpg(tmp_path / f"COCO2014/{name}.jpg", (3, 2))
        ids = np.array([[c + 1, (c + 1) % 80 + 1, 0], [0, 0, c + 1]])
        save_png(tmp_path / f"COCO2014/annotations/{name}.png", ids)
    found = readers("coco-20i", tmp_path)
    assert list(found) == [f"coco_20i_{c:03d}" for c in range(80)]
    for reader in found.values():
        (source,) = reader.listing("train").sources
        assert reader.native_label(source).tolist() == [[1, 0, 0], [0, 0, 1]]
    # A list that has pictures of what its fold tests is not HSNet's.
    lists[0][4] = lists[1][4]
    (folder / "fold0.pkl").write_bytes(pickle.dumps(lists[0]))
    with pytest.raises(UserError, match=r"fold0\.pkl: has images of class 4"):
        readers("coco-20i", tmp_path)


def test_fss_trains_on_the_listed_classes_alone(tmp_path):
    write_fss(tmp_path, ("ac_wall", "zucchini"), per_class=3)
    found = readers("fss-1000", tmp_path)
    assert list(found) == ["fss_1000_000", "fss_1000_001"]
    assert found["fss_1000_001"].labelling.taxonomy.name == "episode:zucchini"
    assert len(found["fss_1000_000"].listing("train").sources) == 3
    (tmp_path / "splits/fss/trn.txt").write_text("ac_wall\nabe's_flyingfish\n")
    with pytest.raises(UserError, match=r"abe's_flyingfish.*none of the test classes"):
        readers("fss-1000", tmp_path)
    (tmp_path / "splits/fss/trn.txt").unlink()
    with pytest.raises(UserError, match=r"must hold fss/trn\.txt"):
        readers("fss-1000", tmp_path)


@pytest.mark.usefixtures("local_ray")
def test_pairs_are_stored_as_a_dataset_for_each_class(tmp_path):
    write_voc(tmp_path)
    config = PrepareConfig(
        few_shot={"pascal-5i": str(tmp_path)},
        few_shot_splits=str(tmp_path / "splits"),
        out=str(tmp_path / "out"),
    )
    prepare(config)
    corpus = open_corpus(str(tmp_path / "out"), "train")
    assert {name: class_of(m) for name, m in corpus.manifests.items()} == {
        "pascal_5i_000": "aeroplane",
        "pascal_5i_005": "bus",
        "pascal_5i_006": "car",
        "pascal_5i_010": "diningtable",
        "pascal_5i_015": "pottedplant",
    }
    assert corpus.sizes["pascal_5i_006"] == 2
    _, label = SampleReader(corpus).read("pascal_5i_006", 0)
    assert np.array_equal(label, np.asarray(_voc_ids(tmp_path, "2007_000002")) == 7)
    kept = without_fold(corpus.manifests, 1)
    assert list(kept) == ["pascal_5i_000", "pascal_5i_010", "pascal_5i_015"]
    with pytest.raises(UserError, match=r"test_fold=4: pascal_5i_000 is not of"):
        without_fold(corpus.manifests, 4)
    assert prepare(config).images_converted == 0


@pytest.mark.parametrize("name", FEW_SHOT_SETS)
def test_every_class_is_tested_in_one_fold_or_trained_in_all(name):
    few_shot = FEW_SHOT_SETS[name]
    tested = [i for fold in range(few_shot.num_folds) for i in few_shot.test_ids(fold)]
    assert len(tested) == len(set(tested)) == {"pascal-5i": 20, "coco-20i": 80}.get(name, 240)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"few_shot": {"pascal-5": "x"}}, "few_shot.pascal-5: must be among"),
        ({"few_shot": {"pascal-5i": "x"}}, "few_shot_splits: not set"),
        ({"few_shot_splits": "x", "own": {"a": {}}}, "has no effect without few_shot"),
        (
            {"few_shot": {"fss-1000": "x"}, "few_shot_splits": "y", "splits": ("val",)},
            "training pairs only",
        ),
    ],
)
def test_a_wrong_setting_is_told(values, message):
    with pytest.raises(UserError, match=message):
        PrepareConfig(out="out", **values)


def _voc_ids(root: Path, name: str) -> np.ndarray:
    from PIL import Image

    with Image.open(root / f"VOC2012/SegmentationClassAug/{name}.png") as image:
        return np.array(image)


def test_the_classes_of_the_evaluation_are_those_that_training_leaves_out(tmp_path):
    write_voc(tmp_path)
    few_shot = open_few_shot("pascal-5i", str(tmp_path))
    assert few_shot.test_ids(2) == tuple(range(10, 15))

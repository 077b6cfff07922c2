"""The report of the demo on photographs: names, tables, metrics, the checkpoint that is kept."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from pipeline.data.shards.format import Manifest
from pipeline.data.taxonomy import IGNORE, Taxonomy
from pipeline.demo.frequent import frequent_figures
from pipeline.demo.photos import _flat, check_kept, keep_checkpoint, names_of, tables
from pipeline.errors import UserError

OURS = Taxonomy("ours", ("sky", "traffic_sign", "unseen"))
UNION = Taxonomy("union", ("car", "unseen", "traffic_sign", "sky"))
MANIFEST = Manifest(
    2, "street", "val", "ours", OURS.fingerprint, "", {}, (), (5, 3, 0), (), (), OURS.classes
)
WORDS = {
    "images": 2,
    "synonyms_miou": 0.5,
    "absent_share": 0.01,
    "unnamed_to_other": {"other": 0.7, "me": None},
    "named_kept": {"other": 0.9, "me": None},
    "words": {"synonym: vehicle": {"names": "car", "iou": 0.4, "iou_by_names": None}},
}


def test_a_dataset_is_asked_by_its_own_words():
    corpus = SimpleNamespace(manifests={"street": MANIFEST}, taxonomy=UNION)
    names, lut = names_of(corpus, "street")
    assert names == ("sky", "traffic sign")  # What no label shows is not asked.
    assert lut[:4].tolist() == [IGNORE, IGNORE, 1, 0]
    words = (("traffic_sign", "sign"), ("sky", "heavens"), ("traffic_sign", "board"))
    corpus.manifests["street"] = replace(MANIFEST, own_words=words)
    names, lut = names_of(corpus, "street")
    assert names == ("sign", "heavens")
    assert lut[:4].tolist() == [IGNORE, IGNORE, 0, 1]
    assert (lut[4:] == IGNORE).all()
    assert lut.dtype == np.uint8


def test_the_tables_show_each_dataset_and_each_word():
    figures = {"words": {"street": WORDS}, "evaluation": {"street": {"miou": 0.61}}}
    console = Console(record=True, width=200)
    for table in tables(figures):
        console.print(table)
    text = console.export_text()
    for part in ("61.0", "50.0", "synonym: vehicle", "40.0", "70.0", "me"):
        assert part in text


def test_metrics_are_numbers_with_plain_names():
    found = dict(_flat({"words": {"street": WORDS}, "checkpoint": "/c"}))
    assert found["photos/words/street/synonyms_miou"] == 0.5
    assert found["photos/words/street/words/synonym_ vehicle/iou"] == 0.4
    assert all(isinstance(value, float) for value in found.values())
    assert "photos/words/street/unnamed_to_other/me" not in found


def test_the_checkpoint_that_is_kept_is_the_last_one_without_what_only_training_needs(tmp_path):
    for name in ("model.safetensors", "config.yaml", "trainer.pt"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("new")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "labels.txt").write_text("old")
    kept = keep_checkpoint(tmp_path / "run", tmp_path / "kept")
    assert sorted(path.name for path in kept.iterdir()) == ["config.yaml", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "run"]


def test_no_folder_of_the_users_gives_way_to_the_checkpoint(tmp_path):
    check_kept(tmp_path / "none", "photos-seed-0")
    place = tmp_path / "checkpoint"
    place.mkdir()
    with pytest.raises(UserError, match="no checkpoint of this demo"):
        check_kept(place, "photos-seed-0")
    (place / "provenance.json").write_text("{}")
    (place / "config.yaml").write_text("run: {name: streets}")
    with pytest.raises(UserError, match="move it away"):
        check_kept(place, "photos-seed-0")
    (place / "config.yaml").write_text("run: {name: photos-seed-1}")
    check_kept(place, "photos-seed-0")


def test_frequent_classes_and_what_is_not_background_have_figures_of_their_own(tmp_path):
    rows = [  # part, class, IoU, pixels of the label, of the answer, of both
        "street,background,0.9,1000,950,900",
        "street,car,0.5,100,50,50",
        "street,hat,0.0,20,0,0",
        "street,boat,,0,0,0",
        "road,sky,0.25,10,10,4",
    ]
    head = "part,class,iou,target_px,predicted_px,hit_px"
    (tmp_path / "per_class.csv").write_text("\n".join([head, *rows]) + "\n")
    photos = {"street": {"background": 90, "car": 20, "hat": 19, "boat": 70}}
    figures = frequent_figures(tmp_path, photos)
    assert figures["street/miou_frequent"] == pytest.approx(0.7)
    assert figures["street/frequent_classes"] == 2
    assert figures["street/pixel_accuracy_foreground"] == pytest.approx(50 / 120)
    assert not [name for name in figures if name.startswith("road/")]

"""The report of the demo on photographs: names, tables, metrics, the checkpoint that is kept."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from rich.console import Console

from pipeline.data.shards.format import Manifest
from pipeline.data.taxonomy import IGNORE, Taxonomy
from pipeline.demo.photos import _flat, keep_checkpoint, names_of, tables

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

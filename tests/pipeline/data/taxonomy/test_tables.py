import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.taxonomy import (
    DATASETS,
    IGNORE,
    Taxonomy,
    label_text,
    lookup_table,
    native_table,
    universal,
)
from pipeline.errors import UserError

NUM_NATIVE = {
    "ade20k": 151,
    "bdd100k": 19,
    "cityscapes": 34,
    "coco_panoptic": 133,
    "idd": 40,
    "mapillary": 66,
    "sunrgbd": 38,
}
datasets = st.sampled_from(DATASETS)


def test_universal_classes():
    taxonomy = universal()
    assert taxonomy.name == "mseg-194"
    assert len(taxonomy.classes) == len(set(taxonomy.classes)) == 194
    assert taxonomy.id_of("road") == 98
    assert taxonomy.id_of("sky") == 142
    assert taxonomy.id_of("wall") == 191
    assert taxonomy.id_of("cell phone") == taxonomy.classes.index("cell phone")


def test_unknown_class_names_the_closest():
    with pytest.raises(UserError, match="did you mean 'bicycle'"):
        universal().id_of("bicycl")


def test_unknown_dataset_names_the_closest():
    with pytest.raises(UserError, match="did you mean 'cityscapes'"):
        lookup_table("cityscape")
    with pytest.raises(UserError, match="mapillary"):
        native_table("../taxonomy/idd")


@given(st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True))
def test_fingerprint_sees_name_classes_and_order(classes: list[str]):
    taxonomy = Taxonomy("one", tuple(classes))
    assert len(taxonomy.fingerprint) == 16
    assert taxonomy.fingerprint == Taxonomy("one", tuple(classes)).fingerprint
    others = [
        Taxonomy("two", tuple(classes)),
        Taxonomy("one", tuple(reversed(classes))),
        Taxonomy("one", tuple(classes[1:])),
    ]
    assert taxonomy.fingerprint not in [other.fingerprint for other in others]


@pytest.mark.parametrize("dataset", DATASETS)
def test_native_table_is_complete(dataset: str):
    table = native_table(dataset)
    ids = [native.native_id for native in table]
    assert len(table) == NUM_NATIVE[dataset]
    assert ids == sorted(set(ids))
    assert 0 <= min(ids)
    assert max(ids) < IGNORE
    assert all(native.native_name == native.native_name.strip() != "" for native in table)


@given(datasets, st.integers(0, 255))
def test_lookup_table_is_the_native_table_and_ignores_the_rest(dataset: str, value: int):
    table = {native.native_id: native.universal_name for native in native_table(dataset)}
    universal_id = lookup_table(dataset)[value]
    if name := table.get(value):
        assert universal().classes[universal_id] == name
    else:
        assert universal_id == IGNORE


@given(datasets, st.lists(st.integers(0, 255), max_size=64))
def test_a_mapped_label_holds_universal_ids_only(dataset: str, pixels: list[int]):
    mapped = lookup_table(dataset)[np.array(pixels, dtype=np.uint8)]
    assert mapped.dtype == np.uint8
    assert ((mapped < len(universal().classes)) | (mapped == IGNORE)).all()


def test_lookup_table_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        lookup_table("idd")[0] = 3


def test_known_targets():
    def target(dataset: str, name: str) -> str | None:
        return {n.native_name: n.universal_name for n in native_table(dataset)}[name]

    assert target("cityscapes", "rider") == "bicyclist"
    assert target("cityscapes", "parking") is None
    assert target("idd", "rider") == "motorcyclist"
    assert target("idd", "unlabeled") is None
    assert target("mapillary", "Crosswalk - Plain") == "road"
    assert target("sunrgbd", "chair") == "chair_other"
    assert target("ade20k", "monitor") is None
    assert lookup_table("ade20k")[0] == IGNORE  # "other" is no class, and id 0 is a backpack
    assert lookup_table("coco_panoptic")[12] == IGNORE  # a gap between the category ids


def test_all_universal_classes_occur():
    reached = {n.universal_name for dataset in DATASETS for n in native_table(dataset)} - {None}
    assert reached == set(universal().classes)


def test_label_text():
    assert label_text("chair_other") == "chair other"
    assert label_text("cell phone") == "cell phone"


@pytest.mark.parametrize("dataset", DATASETS)
def test_tables_equal_the_reference(dataset: str, shared_data):
    folder = shared_data("reference/taxonomy")
    reference = json.loads((folder / f"{dataset}.json").read_text())
    assert lookup_table(dataset).tolist() == reference["lut_native_to_universal"]
    table = {n.native_id: (n.native_name, n.universal_name) for n in native_table(dataset)}
    for native in reference["classes"]:
        name = native["universal_name"]
        expected = (native["native_name"], None if name == "unlabeled" else name)
        assert table[native["native_id"]] == expected
    names = (folder / "universal_classes.txt").read_text().splitlines()
    assert list(universal().classes) == names

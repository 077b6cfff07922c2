import itertools

import numpy as np
import pytest

from pipeline.data.datasets import open_reader
from pipeline.data.synthetic import (
    HELD_OUT,
    SUPER_CLASSES,
    WORLDS,
    label_words,
    rasterise,
    render_scene,
    world_classes,
)
from pipeline.data.synthetic_layout import native_ids, write_mini_seven
from pipeline.data.taxonomy import DATASETS, IGNORE, lookup_table, native_table, universal
from tests.mini_shards import paint_vectors

VECTORS = paint_vectors()
NUM_TRAIN, NUM_VAL = 6, 5


def classes_of(dataset: str, split: str, num_scenes: int) -> set[str | None]:
    return {
        region.universal_name
        for index in range(num_scenes)
        for region in render_scene(dataset, split, index, VECTORS, seed=0).regions
    }


def paint_of(name: str, dataset: str = "ade20k") -> np.ndarray:
    """Mean colour and texture contrast of the first large region of a class: (6,) float64."""
    for index in range(60):
        scene = render_scene(dataset, "train", index, VECTORS, seed=0)
        height, width = scene.image.shape[:2]
        for number, region in enumerate(scene.regions):
            mask = rasterise(region.polygon, width, height)
            for later in scene.regions[number + 1 :]:
                mask = mask & ~rasterise(later.polygon, width, height)
            if region.universal_name == name and mask.sum() > 600:
                pixels = scene.image[mask].astype(float)
                return np.concatenate([pixels.mean(0), pixels.std(0)])
    raise AssertionError(f"60 scenes show little of {name}")


def test_scenes_are_a_pure_function_of_their_arguments():
    first = render_scene("idd", "train", 3, VECTORS, seed=1)
    again = render_scene("idd", "train", 3, VECTORS, seed=1)
    assert np.array_equal(first.image, again.image)
    assert first.regions == again.regions
    others = [
        render_scene("idd", "train", 4, VECTORS, seed=1),
        render_scene("idd", "train", 3, VECTORS, seed=2),
        render_scene("idd", "val", 3, VECTORS, seed=1),
        render_scene("mapillary", "train", 3, VECTORS, seed=1),
    ]
    assert len({scene.regions for scene in [first, *others]}) == 5


@pytest.mark.parametrize("dataset", DATASETS)
def test_worlds_show_classes_that_their_dataset_labels(dataset):
    world = WORLDS[dataset]
    known = {entry.universal_name for entry in native_table(dataset)}
    assert {*world.far, *world.near, *world.things} <= known
    scene = render_scene(dataset, "train", 0, VECTORS, seed=0)
    assert scene.image.shape == (world.size[1], world.size[0], 3)
    assert scene.image.dtype == np.uint8


def test_held_out_classes_are_in_validation_alone():
    train, val = set(), set()
    for dataset in WORLDS:
        train |= classes_of(dataset, "train", 16)
        val |= classes_of(dataset, "val", 12)
    assert set(HELD_OUT) <= val
    assert not set(HELD_OUT) & train
    assert len(HELD_OUT) >= 8
    assert train - {None} == set(world_classes()) - set(HELD_OUT)
    assert None in train


def test_some_words_of_held_out_classes_are_seen_and_some_are_new():
    seen = {word for name in world_classes() if name not in HELD_OUT for word in name.split("_")}
    known = [any(word in seen for word in name.split("_")) for name in HELD_OUT]
    assert any(known)
    assert not all(known)


def test_super_classes_join_a_seen_and_a_held_out_class():
    for members in SUPER_CLASSES.values():
        assert {name in HELD_OUT for name in members} == {True, False}
        assert set(members) <= set(world_classes())


def test_the_paint_of_a_class_is_its_own():
    names = ("wall", "floor", "ceiling", "window", "bed", "table")
    paints = [paint_of(name) for name in names]
    for (name, one), (other, two) in itertools.combinations(zip(names, paints, strict=True), 2):
        assert np.abs(one - two).max() > 12, f"{name} looks like {other}"


def test_the_paint_follows_the_vector_and_not_the_name():
    scene = render_scene("sunrgbd", "train", 0, VECTORS, seed=0)
    top = next(region for region in reversed(scene.regions) if region.universal_name)
    swapped = {**VECTORS, top.universal_name: VECTORS["floor"], "floor": VECTORS["wall"]}
    other = render_scene("sunrgbd", "train", 0, swapped, seed=0)
    assert scene.regions == other.regions
    assert not np.array_equal(scene.image, other.image)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    return write_mini_seven(tmp_path_factory.mktemp("seven"), VECTORS, 4, NUM_TRAIN, NUM_VAL)


@pytest.mark.parametrize("dataset", DATASETS)
def test_readers_read_back_every_pixel(roots, dataset):
    reader = open_reader(dataset, str(roots[dataset]))
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        listing = reader.listing(split)
        assert listing.left_out == ()
        assert len(listing.sources) == count
        scenes = [render_scene(dataset, split, i, VECTORS, seed=4) for i in range(count)]
        # Keys sort otherwise than scenes are numbered: each label must be one scene's, in full.
        known = {entry.native_id for entry in native_table(dataset)}
        expected = [native_ids(dataset, scene) for scene in scenes]
        for ids in expected:
            ids[~np.isin(ids, list(known))] = IGNORE
        wanted = sorted(ids.tobytes() for ids in expected)
        found = [reader.native_label(source) for source in listing.sources]
        width, height = WORLDS[dataset].size
        assert {(*label.shape, str(label.dtype)) for label in found} == {(height, width, "uint8")}
        assert sorted(label.tobytes() for label in found) == wanted


@pytest.mark.parametrize("dataset", DATASETS)
def test_labels_mean_what_was_painted(dataset):
    table = lookup_table(dataset)
    painted = set()
    for index in range(8):
        scene = render_scene(dataset, "val", index, VECTORS, seed=4)
        height, width = scene.image.shape[:2]
        ids = table[native_ids(dataset, scene)]
        top = scene.regions[-1]
        inside = rasterise(top.polygon, width, height)
        name = top.universal_name
        assert set(ids[inside].tolist()) == {universal().id_of(name) if name else IGNORE}
        painted.add(name)
    assert len(painted) >= 3


def test_words_of_a_label():
    assert label_words("traffic_light") == "traffic light"

import itertools

import numpy as np
import pytest

from pipeline.data.datasets import open_reader
from pipeline.data.taxonomy import DATASETS, IGNORE, lookup_table, native_table, universal
from pipeline.demo.layouts import native_ids, write_mini_seven
from pipeline.demo.world import WORLDS, rasterise, render_scene, world_classes
from pipeline.evaluation.behaviours.classes import HELD_OUT, SUPER_CLASSES
from tests.support.mini_shards import paint_vectors

VECTORS = paint_vectors()
NUM_TRAIN, NUM_VAL = 6, 5


def classes_of(dataset: str, split: str, num_scenes: int) -> set[str | None]:
    return {
        region.universal_name
        for index in range(num_scenes)
        for region in render_scene(dataset, split, index, VECTORS, seed=0).regions
    }


def paints(dataset: str, num_scenes: int) -> dict[str, np.ndarray]:
    """Mean colour and contrast of one object of each class that is seen well: (6,) float64."""
    found = {}
    for index in range(num_scenes):
        scene = render_scene(dataset, "train", index, VECTORS, seed=0)
        height, width = scene.image.shape[:2]
        free = np.ones((height, width), bool)
        for region in reversed(scene.regions):
            mask = rasterise(region.polygon, width, height) & free
            free &= ~mask
            if region.universal_name and mask.sum() > 600:
                pixels = scene.image[mask].astype(float)
                found[region.universal_name] = np.concatenate([pixels.mean(0), pixels.std(0)])
    return found


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
def test_scenes_show_classes_that_their_dataset_labels(dataset):
    table = native_table(dataset, overridden=True)
    known = {entry.universal_name for entry in table} | {None}
    shown = classes_of(dataset, "train", 8) | classes_of(dataset, "val", 4)
    assert len(shown) >= 8
    assert shown <= known
    scene = render_scene(dataset, "train", 0, VECTORS, seed=0)
    width, height = WORLDS[dataset].size
    assert (scene.image.shape, scene.image.dtype) == ((height, width, 3), np.uint8)


def test_held_out_classes_are_in_every_second_validation_scene_alone():
    train, val = set(), set()
    for dataset in WORLDS:
        train |= classes_of(dataset, "train", 10)
        for index in range(40):
            scene = render_scene(dataset, "val", index, VECTORS, seed=0)
            shown = {region.universal_name for region in scene.regions}
            # Datasets without any of them in their tables cannot show one.
            table = native_table(dataset, overridden=True)
            has_any = any(entry.universal_name in HELD_OUT for entry in table)
            assert bool(shown & set(HELD_OUT)) == (has_any and index % 2 == 0)
            val |= shown
    assert set(HELD_OUT) <= val
    assert not set(HELD_OUT) & train
    assert len(HELD_OUT) >= 8
    assert train | val <= {*world_classes(), None}
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


def test_paints_differ_by_class():
    found = paints("ade20k", 12)
    assert len(found) >= 8
    distances = [np.abs(one - two).max() for one, two in itertools.combinations(found.values(), 2)]
    # Noise, lighting and the spread within a class leave most pairs far apart, if not all.
    assert np.median(distances) > 25
    assert np.mean(np.array(distances) > 10) > 0.9


def test_the_paint_follows_the_vector_and_not_the_name():
    scene = render_scene("sunrgbd", "train", 0, VECTORS, seed=0)
    top = next(region for region in reversed(scene.regions) if region.universal_name)
    name = top.universal_name
    other = render_scene("sunrgbd", "train", 0, {**VECTORS, name: -VECTORS[name]}, seed=0)
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
    table = lookup_table(dataset, overridden=True)
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

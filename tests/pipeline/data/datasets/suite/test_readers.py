"""The suite's readers on tiny folders, as downloaded and as prepared, and its class lists."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from pipeline.data.datasets.suite import (
    NUM_PUBLISHED,
    SUITE_SETS,
    background_words,
    open_suite_set,
    readers,
    suite_table,
)
from pipeline.data.datasets.suite.readers import LAYOUTS, UNLABELLED, SuiteLayout
from pipeline.data.pixels.checks import BadSample
from pipeline.errors import UserError
from pipeline.evaluation.suite import suite_space

CASES = [(name, layout) for name in SUITE_SETS for layout in LAYOUTS[name]]
NUM_CLASSES = {
    "a-150": 150,
    "a-847": 847,
    "pc-59": 59,
    "pc-459": 459,
    "pas-20": 20,
    "pas-20b": 21,
    "coco-stuff-171": 171,
}


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(root: Path, dataset: str, layout: SuiteLayout, numbers: np.ndarray) -> None:
    """One image whose label holds these class numbers; -1 is unlabelled."""
    stem = {"ade colours": "scene/ADE_val_00000001", "label map": "2008_000002"}.get(
        layout.stored, "x_1"
    )
    image = np.zeros((*numbers.shape, 3), np.uint8)
    image[..., 0] = 250
    save(root / layout.images[0] / f"{stem}{layout.images[1]}", image)
    values = np.array([entry.value for entry in suite_table(dataset)])
    label = root / layout.labels[0] / f"{stem}{layout.labels[1]}"
    if layout.stored == "numbers":
        save(label, np.where(numbers < 0, 255, numbers).astype(np.uint8))
    elif layout.stored == "numbers16":
        save(label, np.where(numbers < 0, UNLABELLED, numbers).astype(np.uint16))
    elif layout.stored == "label map":
        label.parent.mkdir(parents=True, exist_ok=True)
        official = np.where(numbers < 0, 0, values[numbers]).astype(np.uint16)
        scipy.io.savemat(label, {"LabelMap": official}, do_compression=True)
    elif layout.stored == "values":
        unlabelled = 255 if dataset in ("pas-20b", "coco-stuff-171") else 0
        save(label, np.where(numbers < 0, unlabelled, values[numbers]).astype(np.uint8))
    else:
        value = np.where(numbers < 0, 0, values[numbers])
        colours = np.stack([value // 256 * 10 + 3, value % 256, value * 0 + 7], axis=2)
        save(label, colours.astype(np.uint8))
    if layout.image_list:
        path = root / layout.image_list
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{stem}\n")


@pytest.mark.parametrize(
    ("dataset", "layout"), CASES, ids=[f"{name}-{layout.labels[0]}" for name, layout in CASES]
)
@pytest.mark.parametrize("inside", ["", "download/"])
def test_every_class_number_is_read_in_each_layout(dataset, layout, inside, tmp_path):
    count = NUM_CLASSES[dataset]
    numbers = np.append(np.arange(count), -1)
    side = -(-len(numbers) // 7)
    numbers = np.append(numbers, np.full(7 * side - len(numbers), 1)).reshape(side, 7)
    write(tmp_path / inside, dataset, layout, numbers)
    reader = open_suite_set(dataset, str(tmp_path))
    (source,) = reader.sources()
    assert source.image.startswith(inside + layout.images[0])
    image, label = reader.read(source)
    assert image[0, 0].tolist()[1:] == [0, 0] or image[0, 0, 0] > 200 > 50 > image[0, 0, 2]
    np.testing.assert_array_equal(label, np.where(numbers < 0, UNLABELLED, numbers))
    assert label.dtype == np.uint16


@pytest.mark.parametrize("dataset", ["a-847", "pc-459"])
def test_eight_bits_where_sixteen_are_needed_are_refused(dataset, tmp_path):
    layout = LAYOUTS[dataset][-1]
    write(tmp_path, dataset, layout, np.array([[300, 2]]))
    (path,) = (tmp_path / layout.labels[0]).iterdir()
    Image.fromarray(np.array([[44, 2]], np.uint8)).save(path)
    reader = open_suite_set(dataset, str(tmp_path))
    with pytest.raises(BadSample, match="must be 16-bit grey"):
        reader.read(reader.sources()[0])


def test_pascal_context_is_its_validation_and_its_official_label_maps(tmp_path, shared_data):
    layout = LAYOUTS["pc-459"][0]
    write(tmp_path, "pc-459", layout, np.array([[300, 458]]))
    labels = tmp_path / "trainval"
    (labels / "2008_000004.mat").write_bytes((labels / "2008_000002.mat").read_bytes())
    reader = open_suite_set("pc-459", str(tmp_path))
    assert [source.label for source in reader.sources()] == ["trainval/2008_000002.mat"]
    # Class 59 of them is asked by its value among the 459.
    table = [entry.value for entry in suite_table("pc-59")]
    label = open_suite_set("pc-59", str(tmp_path)).read(reader.sources()[0])[1]
    assert label.tolist() == [[table.index(v) if v in table else UNLABELLED for v in (301, 459)]]
    scipy.io.savemat(labels / "2008_000002.mat", {"LabelMap": np.array([[70_000, 2]])})
    with pytest.raises(BadSample, match=r"2008_000002.mat: LabelMap: must hold .* 0 to 65535"):
        reader.read(reader.sources()[0])
    names = shared_data("reference/open_vocab/pascalcontext_val.txt").read_text().split()
    ours = Path(readers.__file__).with_name("pascal-context-val.txt").read_text().split()
    assert ours == names
    assert len(ours) == NUM_PUBLISHED["pc-459"]


def test_sixteen_bits_where_eight_are_stored_are_refused(tmp_path):
    layout = LAYOUTS["a-150"][1]
    write(tmp_path, "a-150", layout, np.array([[3, 2]]))
    (path,) = (tmp_path / layout.labels[0]).iterdir()
    Image.fromarray(np.array([[3, 2]], np.uint16)).save(path)
    reader = open_suite_set("a-150", str(tmp_path))
    with pytest.raises(BadSample, match="8-bit grey"):
        reader.read(reader.sources()[0])


def test_a_label_of_another_set_is_named(tmp_path):
    layout = LAYOUTS["pc-59"][1]
    write(tmp_path, "pc-59", layout, np.array([[3, 2]]))
    (path,) = (tmp_path / layout.labels[0]).iterdir()
    Image.fromarray(np.array([[3, 120]], np.uint8)).save(path)
    reader = open_suite_set("pc-59", str(tmp_path))
    with pytest.raises(BadSample, match="holds 120: must be 0 to 58"):
        reader.read(reader.sources()[0])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"roots.a-150=.*must hold images/validation with"):
        open_suite_set("a-150", str(tmp_path))
    layout = LAYOUTS["pas-20"][2]
    write(tmp_path, "pas-20", layout, np.array([[3, 2]]))
    (tmp_path / layout.image_list).unlink()
    reader = open_suite_set("pas-20", str(tmp_path))
    with pytest.raises(UserError, match=r"must hold ImageSets/Segmentation/val.txt"):
        reader.sources()
    (tmp_path / layout.image_list).write_text("x_1\nx_2\n")
    assert len(reader.sources()) == 2
    with pytest.raises(BadSample, match="x_2"):
        reader.read(reader.sources()[1])


def test_the_full_release_is_seen_with_a_short_side_of_512(tmp_path):
    layout = LAYOUTS["a-847"][0]
    numbers = np.zeros((600, 1000), np.int64)
    numbers[:, 500:] = 846
    write(tmp_path, "a-847", layout, numbers)
    reader = open_suite_set("a-847", str(tmp_path))
    image, label = reader.read(reader.sources()[0])
    assert image.shape == (512, 853, 3)
    assert label.shape == (512, 853)
    assert set(np.unique(label)) == {0, 846}


@pytest.mark.parametrize("dataset", SUITE_SETS)
def test_classes_are_as_many_as_their_name_says(dataset):
    table = suite_table(dataset)
    assert len(table) == NUM_CLASSES[dataset]
    assert len({entry.value for entry in table}) == len(table)
    space = suite_space(dataset)
    assert len(space.texts) == {"pas-20b": 59}.get(dataset, len(table))
    assert sorted(set(space.text_class)) == list(range(len(table)))
    assert not any("," in text for text in space.texts)
    assert len(suite_space(dataset, "best").texts) >= len(space.texts)


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("a-150", "a150"),
        ("a-847", "a847"),
        ("pc-59", "pc59"),
        ("pc-459", "pc459"),
        ("pas-20", "pas20"),
        ("coco-stuff-171", "coco_stuff171"),
    ],
)
def test_they_equal_the_published_lists(dataset, file, shared_data):
    folder = shared_data("reference/open_vocab")
    table = suite_table(dataset)
    for source, ours in (
        ("catseg", [entry.name for entry in table]),
        ("fcclip", [",".join(entry.synonyms) for entry in table]),
    ):
        lines = (folder / f"{file}.{source}.txt").read_text(encoding="utf-8").splitlines()
        assert ours == [line.strip() for line in lines]
    rows = (folder / f"{file}.ids.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert [entry.value for entry in table] == [int(row.split("\t")[1]) for row in rows]


def test_the_background_is_what_follows_vocs_classes(shared_data):
    lines = shared_data("reference/open_vocab/pas20b.catseg.txt").read_text().splitlines()
    assert [*(entry.name for entry in suite_table("pas-20")), *background_words()] == lines

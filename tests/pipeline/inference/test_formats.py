import json

import numpy as np
import pytest

from pipeline.data.pixels.official import decode_index_png, decode_rgb_png
from pipeline.errors import UserError
from pipeline.inference.formats import class_ids, write_format
from pipeline.inference.segmenter import encode_index
from pipeline.storage.open import open_storage


def results(folder, labels, **images):
    """A storage with index files, as a segmentation leaves them."""
    out = open_storage(str(folder))
    for name, ids in images.items():
        out.write(f"{name}.png", encode_index(np.array(ids), labels, "distinct"))
    return out


def test_cityscapes_gets_label_ids(tmp_path):
    labels = ["road", "Traffic-Light"]
    photo = "berlin_000000_000019_leftImg8bit"
    out = results(tmp_path, labels, **{photo: [[0, 1, -1]]})
    write_format("cityscapes", out, [photo], labels)
    written = out.read("cityscapes/berlin_000000_000019.png")
    assert decode_index_png(written, "x", ("L",)).tolist() == [[7, 19, 0]]


def test_ade20k_counts_its_classes_from_1(tmp_path):
    labels = ["sky", "wall"]
    out = results(tmp_path, labels, ADE_test_00000001=[[0, 1, -1]])
    write_format("ade20k", out, ["ADE_test_00000001"], labels)
    written = out.read("ade20k/ADE_test_00000001.png")
    assert decode_index_png(written, "x", ("L",)).tolist() == [[3, 1, 0]]


def test_coco_panoptic_has_one_segment_a_label(tmp_path):
    labels = ["rug", "person", "individual"]
    out = results(tmp_path, labels, **{"000000000139": [[0, 0, -1], [-1, 1, 1]]})
    write_format("coco-panoptic", out, ["000000000139"], labels[:2])
    told = json.loads(out.read("coco-panoptic/panoptic.json"))
    (annotation,) = told["annotations"]
    assert (annotation["image_id"], annotation["file_name"]) == (139, "000000000139.png")
    assert told["images"][0] == {
        "id": 139,
        "file_name": "000000000139",
        "width": 3,
        "height": 2,
    }
    person, rug = annotation["segments_info"]
    assert (person["category_id"], person["area"], person["bbox"]) == (1, 2, [1, 1, 2, 1])
    assert (rug["category_id"], rug["area"], rug["bbox"]) == (200, 2, [0, 0, 2, 1])
    assert [(c["id"], c["name"], c["isthing"]) for c in told["categories"]] == [
        (1, "person", 1),
        (200, "rug", 0),
    ]
    pixels = decode_rgb_png(out.read("coco-panoptic/000000000139.png"), "x").astype(int)
    ids = pixels[..., 0] + 256 * pixels[..., 1] + 256**2 * pixels[..., 2]
    assert ids.tolist() == [[200, 200, 0], [0, 1, 1]]


def test_labels_that_are_none_of_coco_are_counted(tmp_path):
    labels = [f"word {number}" for number in range(300)]
    out = results(tmp_path, labels, **{"a/street": [[0, 299]], "b/street": [[1, -1]]})
    write_format("coco-panoptic", out, ["a/street", "b/street"], labels)
    told = json.loads(out.read("coco-panoptic/panoptic.json"))
    assert [image["id"] for image in told["images"]] == [1, 2]
    assert told["annotations"][1]["file_name"] == "b_street.png"
    pixels = decode_rgb_png(out.read("coco-panoptic/a_street.png"), "x").astype(int)
    assert (pixels[..., 0] + 256 * pixels[..., 1]).tolist() == [[1, 300]]


@pytest.mark.parametrize("name", ["cityscapes", "ade20k"])
def test_a_label_that_is_no_class_is_refused(name):
    with pytest.raises(UserError, match=f"format={name}: 'unicorn' is no class of {name}: ask"):
        class_ids(name, ["sky", "unicorn"])

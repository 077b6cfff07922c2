from pathlib import Path

import numpy as np
import pytest

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import LeftOut
from pipeline.data.pixels.checks import BadSample

from .conftest import Put, png

NAME = "__CRyFzoDOXn6unQ6a3DnQ"
LABEL = [[0, 17, 65], [255, 1, 64]]
EXPECTED = LABEL


@pytest.mark.parametrize("labels", ["labels", "v1.2/labels"])
def test_reads_palette_indices(put: Put, tmp_path: Path, labels: str):
    put(f"training/images/{NAME}.jpg")
    put(f"training/{labels}/{NAME}.png", png(LABEL, "P"))
    put("testing/images/x.jpg")
    reader = open_reader("mapillary", str(tmp_path))
    (source,) = reader.listing("train").sources
    assert reader.native_label(source).tolist() == EXPECTED
    assert reader.listing("val").sources == ()


def test_a_v2_download_gives_its_v1_labels(put: Put, tmp_path: Path):
    put(f"validation/images/{NAME}.jpg")
    put(f"validation/v2.0/labels/{NAME}.png", png([[27]], "P"))
    put(f"validation/v1.2/labels/{NAME}.png", png([[17]], "P"))
    put(f"validation/v1.2/panoptic/{NAME}.png", png([[1]]))
    reader = open_reader("mapillary", str(tmp_path))
    (source,) = reader.listing("val").sources
    assert reader.native_label(source).tolist() == [[17]]


def test_labels_of_v2_alone_are_not_read(put: Put, tmp_path: Path):
    put(f"validation/images/{NAME}.jpg")
    put(f"validation/v2.0/labels/{NAME}.png", png([[27]], "P"))
    listing = open_reader("mapillary", str(tmp_path)).listing("val")
    assert listing.sources == ()
    reason = f"no label: validation/labels/{NAME}.png is not there"
    assert listing.left_out == (LeftOut(f"validation/images/{NAME}.jpg", reason),)


def test_keys_that_differ_by_case_or_begin_oddly(put: Put, tmp_path: Path):
    names = ["aBc", "AbC", "abc", "-abc", "_abc", "__abc"]
    for name in names:
        put(f"training/images/{name}.jpg")
        put(f"training/labels/{name}.png", png([[3]], "P"))
    listing = open_reader("mapillary", str(tmp_path)).listing("train")
    keys = [source.key for source in listing.sources]
    assert len({key.lower() for key in keys}) == len(names)
    assert keys == sorted(keys)
    assert all(key[0].isalnum() and "." not in key for key in keys)
    # A key does not depend on what else is there.
    for name in names[1:]:
        (tmp_path / f"training/images/{name}.jpg").unlink()
    (alone,) = open_reader("mapillary", str(tmp_path)).listing("train").sources
    assert alone in listing.sources


@pytest.mark.parametrize(("mode", "shape"), [("L", (2, 2)), ("RGB", (2, 2, 3)), ("I;16", (2, 2))])
def test_a_label_without_palette_is_refused(
    put: Put, tmp_path: Path, mode: str, shape: tuple[int, ...]
):
    put(f"training/images/{NAME}.jpg")
    put(f"training/labels/{NAME}.png", png(np.ones(shape), mode))
    reader = open_reader("mapillary", str(tmp_path))
    (source,) = reader.listing("train").sources
    with pytest.raises(BadSample, match=rf"{NAME}\.png.*palette"):
        reader.native_label(source)

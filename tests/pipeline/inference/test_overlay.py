import numpy as np
import pytest

from pipeline.data.pixels.palette import (
    KNOWN_COLOURS,
    NO_LABEL_COLOUR,
    NUM_TEXTURES,
    OKABE_ITO,
    label_colours,
    label_textures,
    name_colours,
    texture_mask,
    to_lab,
)
from pipeline.data.taxonomy import universal
from pipeline.inference.overlay import draw_photo

# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
COLOUR_BLIND = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def closest(colours: np.ndarray) -> float:
    """The smallest distance in CIELAB between two of them."""
    lab = to_lab(colours)
    distance = np.linalg.norm(lab[:, None] - lab, axis=2)
    distance[np.diag_indices(len(colours))] = np.inf
    return float(distance.min())


@pytest.mark.parametrize(("count", "least"), [(8, 45), (20, 30), (40, 20), (150, 10)])
def test_distinct_colours_are_far_apart(count, least):
    colours = label_colours(count)
    assert colours.shape == (count, 3)
    assert closest(np.vstack([colours, [NO_LABEL_COLOUR]]).astype(np.uint8)) > least
    np.testing.assert_array_equal(colours[:5], label_colours(5))


def test_frequent_classes_have_their_well_known_colours_everywhere():
    some = name_colours(["my thing", "Road", "sky", "tree"]).tolist()
    assert some[1:] == [[128, 64, 128], [70, 130, 180], [107, 142, 35]]
    universal_names = universal().classes
    every = dict(zip(universal_names, name_colours(universal_names).tolist(), strict=True))
    for name, shown in (
        ("sidewalk_pavement", "sidewalk"),
        ("traffic_sign", "traffic sign"),
        ("vegetation", "vegetation"),
        ("rider_other", "rider"),
    ):
        assert every[name] == [*KNOWN_COLOURS[shown]]
    assert every["road"] == some[1]
    # Two words of one class stay apart, and nothing else comes near to a known colour.
    both = name_colours(["tree", "vegetation", "a", "b", "c", "sky"])
    assert closest(both) > 25
    assert len({*map(tuple, every.values())}) == len(every)
    assert name_colours([]).shape == (0, 3)
    np.testing.assert_array_equal(name_colours(["a", "b"], "colour-blind"), OKABE_ITO[:2])


@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_the_safe_palette_stays_apart_in_colour_blind_eyes(kind):
    linear = (np.array(OKABE_ITO) / 255) ** 2.2
    simulated = (linear @ np.array(COLOUR_BLIND[kind]).T).clip(0, 1) ** (1 / 2.2)
    assert closest((simulated * 255).astype(np.uint8)) > 10


def test_the_safe_palette_repeats_under_textures():
    colours, textures = label_colours(40, "colour-blind"), label_textures(40, "colour-blind")
    assert len({(*c, t) for c, t in zip(colours.tolist(), textures.tolist(), strict=True)}) == 40
    assert not label_textures(40).any()
    masks = [texture_mask(t, (48, 48), 12) for t in range(NUM_TEXTURES)]
    assert not masks[0].any()
    for number, mask in enumerate(masks[1:], 1):
        assert 0.05 < mask.mean() < 0.5
        assert not any((mask == other).all() for other in masks[:number])


def test_the_picture_shows_colours_in_place_and_a_legend():
    image = np.full((300, 500, 3), 128, np.uint8)
    ids = np.zeros((300, 500), np.int64)
    ids[:, 250:] = 1
    ids[200:, :100] = -1
    sheet = np.asarray(draw_photo(image, ids, ["dog", "grass", "sky"], "other"))
    assert sheet.shape[1] == 900
    assert sheet.shape[0] > 540  # the image, enlarged, and the legend below it
    colours = name_colours(["dog", "grass", "sky"]).astype(float)
    # Away from the names, which stand in the middle of the regions.
    assert np.abs(sheet[20, 20] - (0.42 * 144 + 0.58 * colours[0])).max() < 2
    assert np.abs(sheet[20, 880] - (0.42 * 144 + 0.58 * colours[1])).max() < 2
    none = sheet[530, 10].astype(int)
    assert none.max() - none.min() == 0  # no colour at all
    legend = sheet[545:].reshape(-1, 3)
    assert (legend == 255).all(1).mean() > 0.5
    for colour in colours[:2]:
        assert (np.abs(legend - (0.42 * 175 + 0.58 * colour)).max(1) < 2).any()
    assert not (np.abs(legend - (0.42 * 175 + 0.58 * colours[2])).max(1) < 2).any()  # not found


@pytest.mark.parametrize("size", [(1, 1), (3, 1500), (2000, 7), (64, 64)])
@pytest.mark.parametrize("palette", ["distinct", "colour-blind"])
def test_any_size_and_number_of_labels(size, palette):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    ids = rng.integers(-1, 300, size)
    names = [f"label with a rather long name {number} é" for number in range(300)]
    sheet = draw_photo(image, ids, names, "none of these", palette)
    pixels = np.asarray(sheet)
    long_side = int(np.clip(max(size), 900, 1600))
    height, width = (max(1, round(side * long_side / max(size))) for side in size)
    assert sheet.width == max(width, 480)
    # The photo stands in the middle of the sheet, coloured from edge to edge, on white paper.
    left = (sheet.width - width) // 2
    photo, legend = pixels[:height, left : left + width], pixels[height:]
    assert (photo != 255).any(2).mean() > 0.95
    assert (pixels[:height, :left] == 255).all()
    # Entries are written below it, however many: they fill a part of their lines.
    assert 0.01 < (legend != 255).any(2).mean() < 0.5
    assert legend.shape[0] < 2000

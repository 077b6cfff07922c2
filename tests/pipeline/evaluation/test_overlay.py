"""Sheets of compared segmentations: the same colour for a label in truth, prediction and legend."""

from dataclasses import replace

import numpy as np
from PIL import Image

from pipeline.data.pixels.palette import NO_LABEL_COLOUR, label_colours
from pipeline.evaluation.overlay import PANEL, ComparedImage, draw

GREY = 100


def compared(**values) -> ComparedImage:
    """Two halves; the prediction swaps them, and the lower rows of the truth are unlabelled."""
    truth = np.zeros((60, 80), np.int64)
    truth[:, 40:] = 7
    prediction = 7 - truth
    truth[50:] = 255
    labels = tuple(f"label {number}" for number in range(8))
    image = np.full((60, 80, 3), GREY, np.uint8)
    return ComparedImage("title", image, truth, prediction, labels, **values)


def painted(colour: np.ndarray) -> np.ndarray:
    return 0.42 * (GREY * 0.75 + 48) + 0.58 * colour.astype(float)


def panels(sheet: np.ndarray) -> list[np.ndarray]:
    """The three images of the only line, below their titles."""
    top = sheet.shape[0] - 8 - PANEL[1]
    lefts = [8 + number * (PANEL[0] + 8) + (PANEL[0] - 320) // 2 for number in range(3)]
    return [sheet[top : top + PANEL[1], left : left + 320].astype(int) for left in lefts]


def test_a_label_has_one_colour_and_none_is_paler(tmp_path):
    draw([compared()], tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    image, truth, prediction = panels(sheet)
    assert (image == GREY).all()
    first, second = (painted(colour) for colour in label_colours(8)[:2])
    for panel, (left, right) in ((truth, (first, second)), (prediction, (second, first))):
        assert np.abs(panel[100, 40] - left).max() < 2
        assert np.abs(panel[100, 280] - right).max() < 2
    blank = truth[230, 40]
    assert blank.max() - blank.min() == 0
    assert blank.min() > truth[100].max(axis=0).min()
    # The legend names the two labels that are there, and no other.
    legend = sheet[:, 8 + 3 * (PANEL[0] + 8) :].reshape(-1, 3).astype(int)
    swatches = [0.42 * 175 + 0.58 * colour.astype(float) for colour in label_colours(3)]
    there = [bool((np.abs(legend - swatch).max(1) < 2).any()) for swatch in swatches]
    assert there == [True, True, False]


def test_a_black_picture_is_drawn(tmp_path):
    line = compared()
    draw([replace(line, image=np.zeros_like(line.image))], tmp_path / "black.png")
    image, truth, _ = panels(np.asarray(Image.open(tmp_path / "black.png")))
    assert (image == 0).all()
    assert truth.max() > 0


def test_a_label_keeps_its_colour_in_every_line(tmp_path):
    """Whatever else a line shows, and wherever the label stands in it."""
    one = replace(compared(), labels=("road", "b", "c", "d", "e", "f", "g", "my thing"))
    other = replace(compared(), labels=("my thing", "h", "i", "j", "k", "l", "m", "sky"))
    draw([one, other], tmp_path / "two.png")
    draw([one], tmp_path / "one.png")
    height = Image.open(tmp_path / "one.png").height
    sheet = np.asarray(Image.open(tmp_path / "two.png"))
    _, first, _ = panels(sheet[:height])
    _, second, _ = panels(sheet[height:])
    np.testing.assert_array_equal(first[100, 280], second[100, 40])
    assert np.abs(first[100, 40] - painted(np.array((128, 64, 128)))).max() < 2
    assert np.abs(second[100, 280] - painted(np.array((70, 130, 180)))).max() < 2


def test_other_is_grey_and_lines_stand_below_each_other(tmp_path):
    draw([compared(has_other=True), compared()], tmp_path / "two.png")
    draw([compared(has_other=True)], tmp_path / "one.png")
    one, two = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("one", "two"))
    assert two.shape == (2 * one.shape[0], *one.shape[1:])
    assert (two[: one.shape[0]] == one).all()
    _, truth, prediction = panels(one)
    grey = painted(np.array(NO_LABEL_COLOUR))
    assert np.abs(truth[100, 280] - grey).max() < 2
    assert np.abs(prediction[100, 40] - grey).max() < 2
    assert np.abs(truth[100, 40] - painted(label_colours(1)[0])).max() < 2

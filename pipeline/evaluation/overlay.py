"""Sheets of compared segmentations: image, ground truth, prediction and legend side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.pixels.palette import NO_LABEL_COLOUR, name_colours
from pipeline.inference.fonts import shown_name, text_font
from pipeline.inference.overlay import (
    FAINT,
    INK,
    PAPER,
    Style,
    draw_swatch,
    paint,
    resize_ids,
    resize_image,
    shorten,
)

MAX_LEGEND = 12
"""Labels that the legend of one line has room for."""

PANEL = (330, 240)
"""Width and height of the room of each of the three images of a line."""

_GAP, _TITLE_PX, _LEGEND_PX, _SIZE = 8, 16, 250, 13


@dataclass(frozen=True)
class ComparedImage:
    """One image with two segmentations in the same labels."""

    title: str
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    truth: np.ndarray
    """(H, W) integers, positions in `labels`; anything else is left blank."""
    prediction: np.ndarray
    """(H, W) integers, positions in `labels`."""
    labels: tuple[str, ...]
    has_other: bool = False
    """The last label stands for "none of the others" and is drawn grey."""


def draw(lines: Sequence[ComparedImage], path: Path) -> None:
    """Writes one PNG with a line for each image."""
    colours = _colours(lines)
    drawn = [_line(line, colours) for line in lines]
    sheet = Image.new("RGB", (drawn[0].width, sum(image.height for image in drawn)), PAPER)
    top = 0
    for image in drawn:
        sheet.paste(image, (0, top))
        top += image.height
    sheet.save(path)


def _line(line: ComparedImage, colours: Mapping[str, np.ndarray]) -> Image.Image:
    count = len(line.labels)
    height, width = _content(line.image)
    image = line.image[:height, :width]
    # Whatever is no label becomes `count`, which is drawn as none.
    truth, prediction = (
        np.where((ids >= 0) & (ids < count), ids, count)[:height, :width]
        for ids in (line.truth, line.prediction)
    )
    shown = _shown(truth, prediction, count)
    style = Style(line.labels)
    style.colours[:count] = [colours[name] for name in line.labels]
    if line.has_other:
        style.colours[count - 1] = NO_LABEL_COLOUR
    zoom = min(PANEL[0] / width, PANEL[1] / height)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    small = resize_image(image, size)
    panels = [small]
    for ids in (resize_ids(truth, size), resize_ids(prediction, size)):
        painted = paint(small, ids, style)
        painted[ids == count] = painted[ids == count] // 3 + 165
        panels.append(painted)
    titles = (line.title, "ground truth", "prediction")
    head = _TITLE_PX * (1 + line.title.count("\n")) + _GAP
    left = _GAP + 3 * (PANEL[0] + _GAP)
    sheet = Image.new("RGB", (left + _LEGEND_PX, head + size[1] + _GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        middle = _GAP + number * (PANEL[0] + _GAP) + PANEL[0] // 2
        font = text_font(_SIZE, title)
        pen.text((middle, head - 5), title, INK, font, anchor="md", align="center")
        sheet.paste(Image.fromarray(panel), (middle - size[0] // 2, head))
    # The largest, in the order of the labels: a longer legend would run out of its line.
    areas = {i: int((truth == i).sum() + (prediction == i).sum()) for i in shown}
    legend = sorted(sorted(shown, key=lambda i: -areas[i])[:MAX_LEGEND])
    pitch = min(19, size[1] // max(1, len(legend)))
    top = head + (size[1] - pitch * len(legend)) // 2
    for row, number in enumerate(legend):
        y, side = top + row * pitch, pitch - 5
        sheet.paste(draw_swatch(number, side, style), (left, y))
        pen.rectangle((left, y, left + side - 1, y + side - 1), outline=FAINT)
        name = shown_name(line.labels[number], number)
        font = text_font(_SIZE, name)
        name = shorten(pen, name, font, _LEGEND_PX - side - 2 * _GAP)
        pen.text((left + side + _GAP, y + side // 2), name, INK, font, anchor="lm")
    return sheet


def _colours(lines: Sequence[ComparedImage]) -> dict[str, np.ndarray]:
    """The colour of each label, the same in all lines; those that are shown lie farthest apart."""
    shown: dict[str, None] = {}
    every: dict[str, None] = {}
    for line in lines:
        count = len(line.labels)
        truth, prediction = (
            np.where((ids >= 0) & (ids < count), ids, count)
            for ids in (line.truth, line.prediction)
        )
        shown |= dict.fromkeys(line.labels[i] for i in _shown(truth, prediction, count))
        every |= dict.fromkeys(line.labels)
    names = [*shown, *(name for name in every if name not in shown)]
    return dict(zip(names, name_colours(names), strict=True))


def _shown(truth: np.ndarray, prediction: np.ndarray, count: int) -> list[int]:
    """Labels worth a line of the legend: they are there, or cover half a per cent of what is."""
    there = np.bincount(truth.ravel(), minlength=count + 1)[:count]
    found = np.bincount(prediction[truth < count], minlength=count + 1)[:count]
    return np.flatnonzero((there > 0) | (found > 0.005 * max(1, there.sum()))).tolist()


def _content(image: np.ndarray) -> tuple[int, int]:
    """Height and width of an image without the black padding at the right and bottom."""
    rows, columns = np.nonzero(image.max(axis=2))
    if not len(rows):  # An image that is black as a whole has none.
        return image.shape[0], image.shape[1]
    return int(rows.max()) + 1, int(columns.max()) + 1

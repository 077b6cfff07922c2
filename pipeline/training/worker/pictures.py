"""Small drawings of a validation: a few images with truth and answer, and the confusion matrix.

They are drawn while all workers wait, and stay in the journal until MLflow has them: both their
number and their bytes are bounded.
"""

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.metrics import ConfusionMatrix
from pipeline.data.pixels.palette import name_colours
from pipeline.tracking.limits import MAX_PICTURE_BYTES
from pipeline.training.worker.validation import Example

MOST_CLASSES = 24
"""Classes of a confusion matrix that are drawn, those with the most pixels."""

_PANEL_PX, _LEGEND_PX, _HEAD_PX, _GAP_PX = 220, 170, 20, 6
_MOST_IN_LEGEND = 9
_CELL_PX, _NAMES_PX = 24, 130
_INK, _PAPER = (25, 25, 25), (255, 255, 255)
_BLANK = 215  # Grey where the truth says nothing.


def draw_examples(examples: Sequence[Example], labels: Sequence[str]) -> bytes:
    """Draws a line for each image: itself, the truth, the answer and a legend; a PNG."""
    colours = name_colours(labels)
    lines = [_line(example, labels, colours) for example in examples]
    width = 3 * (_PANEL_PX + _GAP_PX) + _LEGEND_PX
    sheet = Image.new("RGB", (width, _HEAD_PX + sum(line.height for line in lines)), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, title in enumerate(("image", "truth", "answer")):
        pen.text((number * (_PANEL_PX + _GAP_PX) + 2, 3), title, _INK, font)
    top = _HEAD_PX
    for line in lines:
        sheet.paste(line, (0, top))
        top += line.height
    return small_png(sheet)


def _line(example: Example, labels: Sequence[str], colours: np.ndarray) -> Image.Image:
    height, width = _content(example)
    image = example.image[:height, :width]
    truth, answer = example.target[:height, :width], example.answer[:height, :width]
    known = truth < len(labels)
    zoom = _PANEL_PX / max(height, width)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    painted = [colours[np.where(known, truth, 0)], colours[answer]]
    painted[0][~known] = _BLANK
    panels = [image, *((0.35 * image + 0.65 * layer).astype(np.uint8) for layer in painted)]
    for panel in panels[1:]:  # Where nothing is known, nothing can be wrong.
        panel[~known] = panel[~known] // 3 + _BLANK * 2 // 3
    line = Image.new("RGB", (3 * (_PANEL_PX + _GAP_PX) + _LEGEND_PX, size[1] + _GAP_PX), _PAPER)
    for number, panel in enumerate(panels):
        shown = cv2.resize(panel, size, interpolation=cv2.INTER_AREA)
        line.paste(Image.fromarray(shown), (number * (_PANEL_PX + _GAP_PX), 0))
    _write_legend(line, example.dataset, _largest(truth[known], answer[known]), labels, colours)
    return line


def _content(example: Example) -> tuple[int, int]:
    """Height and width of the image without its padding, which is black and unlabelled."""
    there = (example.image.max(axis=2) > 0) | (example.target < 255)
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    if not len(rows):
        return there.shape[0], there.shape[1]
    return int(rows[-1]) + 1, int(columns[-1]) + 1


def _largest(truth: np.ndarray, answer: np.ndarray) -> list[int]:
    """The classes with the most pixels on both sides, largest first."""
    ids, counts = np.unique(np.concatenate([truth.astype(np.int64), answer]), return_counts=True)
    return [int(i) for i in ids[np.argsort(-counts, kind="stable")][:_MOST_IN_LEGEND]]


def _write_legend(
    line: Image.Image, title: str, ids: Sequence[int], labels: Sequence[str], colours: np.ndarray
) -> None:
    pen, font = ImageDraw.Draw(line), ImageFont.load_default(11)
    left = 3 * (_PANEL_PX + _GAP_PX)
    pen.text((left, 0), _short(pen, title, font, _LEGEND_PX), _INK, font)
    for row, number in enumerate(ids, 1):
        y = row * 14
        if y + 12 > line.height - _GAP_PX:
            return
        pen.rectangle((left, y + 2, left + 9, y + 11), tuple(colours[number].tolist()))
        name = _short(pen, labels[number], font, _LEGEND_PX - 16)
        pen.text((left + 14, y), name, _INK, font)


def draw_confusion(matrices: Sequence[ConfusionMatrix], labels: Sequence[str]) -> bytes:
    """Draws what the classes with the most pixels were taken for, over all datasets; a PNG.

    A row is a class; a cell is the share of its pixels that were taken for the column's class. The
    last column is the sum of all other classes. Empty without a counted pixel.
    """
    counts = np.sum([matrix.counts.cpu().numpy() for matrix in matrices], axis=0)
    sizes = counts.sum(1)
    chosen = [int(i) for i in np.argsort(-sizes, kind="stable")[:MOST_CLASSES] if sizes[i]]
    if not chosen:
        return b""
    shares = counts[chosen][:, chosen] / sizes[chosen, None]
    shares = np.concatenate([shares, 1 - shares.sum(1, keepdims=True)], axis=1)
    columns = [*(labels[i] for i in chosen), "all others"]
    side = (_NAMES_PX + _CELL_PX * len(columns), _NAMES_PX + _CELL_PX * len(chosen))
    sheet = Image.new("RGB", side, _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, number in enumerate(chosen):
        y = _NAMES_PX + row * _CELL_PX
        name = _short(pen, labels[number], font, _NAMES_PX - 8)
        pen.text((_NAMES_PX - 6, y + _CELL_PX // 2), name, _INK, font, anchor="rm")
        for column, share in enumerate(shares[row]):
            x = _NAMES_PX + column * _CELL_PX
            pen.rectangle((x, y, x + _CELL_PX - 2, y + _CELL_PX - 2), _blue(share))
            if share >= 0.045:
                ink = _PAPER if share > 0.5 else _INK
                middle = (x + _CELL_PX // 2 - 1, y + _CELL_PX // 2 - 1)
                pen.text(middle, f"{100 * share:.0f}", ink, font, anchor="mm")
    sheet.paste(_upright(columns, font), (_NAMES_PX, 0))
    pen.text((2, 2), "row: truth\ncolumn: answer\n% of the row", _INK, font)
    return small_png(sheet)


def _upright(
    names: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
    """The names of the columns, written upwards."""
    lying = Image.new("RGB", (_NAMES_PX, _CELL_PX * len(names)), _PAPER)
    pen = ImageDraw.Draw(lying)
    for number, name in enumerate(names):
        y = number * _CELL_PX + _CELL_PX // 2
        pen.text((6, y), _short(pen, name, font, _NAMES_PX - 8), _INK, font, anchor="lm")
    # A quarter turn to the left puts the first row at the left edge.
    return lying.transpose(Image.Transpose.ROTATE_90)


def _blue(share: float) -> tuple[int, int, int]:
    """White for none, dark blue for all; small shares are visible."""
    strength = float(np.clip(share, 0, 1)) ** 0.6
    return tuple(round(255 + (dark - 255) * strength) for dark in (8, 48, 107))  # type: ignore[return-value]


def _short(
    pen: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    room_px: int,
) -> str:
    if pen.textlength(text, font) <= room_px:
        return text
    while text and pen.textlength(f"{text}...", font) > room_px:
        text = text[:-1]
    return f"{text}..."


def small_png(sheet: Image.Image) -> bytes:
    """An image in 256 colours as a PNG, shrunk until it has at most MAX_PICTURE_BYTES."""
    while True:
        file = io.BytesIO()
        sheet.quantize(256).save(file, "PNG")
        if file.tell() <= MAX_PICTURE_BYTES:
            return file.getvalue()
        sheet = sheet.resize((sheet.width * 3 // 4, sheet.height * 3 // 4))

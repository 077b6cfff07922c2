"""Pictures of segmentations: image, ground truth, prediction, and a legend with the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.data.pixels.palette import palette

MAX_LEGEND = 12
"""Labels that the legend of one row has room for."""

OTHER_COLOUR = (0.55, 0.55, 0.55)
"""Grey, for the label that stands for no label."""


@dataclass(frozen=True)
class Row:
    """One picture with two segmentations in the same labels."""

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


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes one PNG with a line of pictures for each row."""
    figure = Figure(figsize=(11.5, 2.35 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 4, squeeze=False, width_ratios=(1, 1, 1, 0.75))
    for line, row in zip(axes, rows, strict=True):
        height, width = _content(row.image)
        image = row.image[:height, :width]
        truth, prediction = row.truth[:height, :width], row.prediction[:height, :width]
        blank = (truth < 0) | (truth >= len(row.labels))
        shown = [i for i in range(len(row.labels)) if _visible(i, truth, prediction, blank)]
        colours = _colours(row, shown)
        _show(line[0], image, row.title)
        _show(line[1], _blend(image, truth, colours), "ground truth")
        _show(line[2], _blend(image, prediction, colours), "prediction")
        # The largest, in the order of the labels: a longer legend would run out of its line.
        shown = sorted(sorted(shown, key=lambda i: -_area(i, truth, prediction))[:MAX_LEGEND])
        patches = [Patch(color=colours[i], label=row.labels[i]) for i in shown]
        line[3].legend(handles=patches, loc="center left", fontsize=8, frameon=False)
        line[3].axis("off")
    figure.savefig(path)


def _colours(row: Row, shown: Sequence[int]) -> np.ndarray:
    """A colour for each label: (K, 3) float, 0..1; those that are shown lie far apart."""
    order = [*shown, *(i for i in range(len(row.labels)) if i not in set(shown))]
    colours = np.empty((len(row.labels), 3))
    colours[order] = palette(len(order))
    if row.has_other:
        colours[-1] = OTHER_COLOUR
    return colours


def _visible(position: int, truth: np.ndarray, prediction: np.ndarray, blank: np.ndarray) -> bool:
    """Whether a label is worth a line of the legend: it is there, or covers half a per cent."""
    share = float((prediction[~blank] == position).mean()) if (~blank).any() else 0.0
    return bool((truth == position).any()) or share > 0.005


def _area(position: int, truth: np.ndarray, prediction: np.ndarray) -> int:
    """Pixels of a label in either segmentation."""
    return int((truth == position).sum() + (prediction == position).sum())


def _blend(image: np.ndarray, ids: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colours over a pale grey version of the picture: (H, W, 3) float, 0..1."""
    grey = np.repeat(image.mean(2, keepdims=True) / 255, 3, 2) * 0.6 + 0.4
    valid = (ids >= 0) & (ids < len(colours))
    paint = colours[np.where(valid, ids, 0)]
    return np.where(valid[..., None], 0.25 * grey + 0.75 * paint, grey * 0.35 + 0.6)


def _content(image: np.ndarray) -> tuple[int, int]:
    """Size of a picture without the black padding at the right and bottom."""
    rows, columns = np.nonzero(image.max(axis=2))
    return int(rows.max()) + 1, int(columns.max()) + 1


def _show(axis: Axes, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.axis("off")

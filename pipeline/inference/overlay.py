"""One segmented photo as an image for people: colours, outlines, names in place, a legend.

The photo stays visible in pale grey below the colours. A region that is large enough carries its
name; the legend below lists every label with its share of the image, largest first, and what was
asked and not found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.pixels.palette import (
    NO_LABEL_COLOUR,
    PaletteName,
    label_textures,
    name_colours,
    texture_mask,
)
from pipeline.inference.fonts import shown_name, shown_together, text_font
from pipeline.inference.shares import percent

LONG_SIDE_PX = (900, 1600)
"""Photos are shown enlarged or shrunk to a long side within these bounds."""

MIN_NAMED_SHARE = 0.01
"""Regions below this share of the image do not carry their name."""

MAX_ENTRIES = 60
"""Entries of a legend; what is left is counted in its last one."""

_FRAME = "not found: and more, 0123456789%<…"
"""What the last lines of a legend are written with, beside names."""

INK, FAINT, PAPER = (25, 25, 25), (120, 120, 120), (255, 255, 255)


@dataclass(frozen=True)
class _Entry:
    """One label of the image."""

    name: str
    number: int
    share: float


def draw_photo(
    image: np.ndarray,
    ids: np.ndarray,
    names: Sequence[str],
    none_name: str = "none of these",
    palette: PaletteName = "distinct",
) -> Image.Image:
    """Draws a segmented photo above its legend, in RGB.

    Args:
        image: (H, W, 3) uint8 RGB.
        ids: (H, W) integers: positions in `names`; anything else is no label.
        names: The labels.
        none_name: The legend's name for pixels of no label.
        palette: Colours.
    """
    height, width = ids.shape
    ids = np.where((ids >= 0) & (ids < len(names)), ids, len(names))
    counts = np.bincount(ids.ravel(), minlength=len(names) + 1)
    all_names = [shown_name(name, number) for number, name in enumerate([*names, none_name])]
    order = np.argsort(-counts, kind="stable")
    entries = [
        _Entry(all_names[i], int(i), float(counts[i] / ids.size)) for i in order if counts[i]
    ]
    zoom = np.clip(1.0, *(bound / max(height, width) for bound in LONG_SIDE_PX))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    style = Style(names, palette)
    shown = resize_ids(ids, size)
    painted = Image.fromarray(paint(resize_image(image, size), shown, style))
    _write_names(painted, shown, entries)
    missing = [name for name, count in zip(all_names, counts[:-1], strict=False) if not count]
    legend = _legend(max(size[0], 480), entries, missing, style)
    sheet = Image.new("RGB", (legend.width, painted.height + legend.height), PAPER)
    sheet.paste(painted, ((legend.width - painted.width) // 2, 0))
    sheet.paste(legend, (0, painted.height))
    return sheet


class Style:
    """Colours and textures of the labels and, last, of no label."""

    def __init__(self, names: Sequence[str], palette: PaletteName = "distinct") -> None:
        self.colours = np.vstack([name_colours(names, palette), [NO_LABEL_COLOUR]])
        self.textures = np.append(label_textures(len(names), palette), 0)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) uint8 at another size (width, height)."""
    smaller = size[0] < image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def resize_ids(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Label ids (H, W) at another size (width, height): int32, each that of the nearest pixel."""
    # As floats: OpenCV has no nearest neighbour at pixel centres for wide integers.
    resized = cv2.resize(ids.astype(np.float32), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.int32)


def paint(image: np.ndarray, shown: np.ndarray, style: Style) -> np.ndarray:
    """Paints an image in pale grey under the labels' colours, with outlines: (H, W, 3) uint8."""
    grey = image.mean(2, keepdims=True) * 0.75 + 48
    colours = style.colours[shown].astype(np.float32)
    for texture in np.unique(style.textures[np.unique(shown)]):
        mask = texture_mask(int(texture), shown.shape, 12) & (style.textures[shown] == texture)
        colours[mask] = colours[mask] * 0.25 + 190
    mixed = 0.42 * grey + 0.58 * colours
    none = shown == len(style.colours) - 1
    mixed[none] = (grey * 0.6 + 92).repeat(3, 2)[none]
    edges = np.zeros(shown.shape, np.uint8)
    edges[:, 1:] |= shown[:, 1:] != shown[:, :-1]
    edges[1:] |= shown[1:] != shown[:-1]
    # Where regions are dust, outlines would hide them.
    if edges.mean() < 0.15:
        mixed[edges > 0] = mixed[edges > 0] * 0.25 + 191
    return mixed.clip(0, 255).astype(np.uint8)


def _write_names(painted: Image.Image, shown: np.ndarray, entries: Sequence[_Entry]) -> None:
    """Writes each label's name into the middle of its largest region, if it fits there."""
    draw = ImageDraw.Draw(painted)
    smallest = max(12, painted.width // 80)
    taken: list[tuple[float, float, float, float]] = []
    for entry in entries:
        if entry.share < MIN_NAMED_SHARE:
            continue
        mask = np.pad((shown == entry.number).astype(np.uint8), 1)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        radius = float(depth[y, x])
        size = int(min(2.2 * smallest, max(smallest, radius / 2)))
        font = text_font(size, entry.name)
        half = draw.textlength(entry.name, font) / 2
        if radius < 0.8 * size or half > 2.5 * radius:
            continue
        x = int(np.clip(x, half + 4, max(half + 4, painted.width - half - 4)))
        box = (x - half, y - size / 2, x + half, y + size / 2)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        draw.text(
            (x, int(y)),
            entry.name,
            PAPER,
            font,
            anchor="mm",
            stroke_width=max(2, size // 8),
            stroke_fill=INK,
        )


def _legend(
    width: int, entries: Sequence[_Entry], missing: Sequence[str], style: Style
) -> Image.Image:
    """Draws columns of swatches with names and shares, and a last line for what was not found."""
    size = max(15, width // 58)
    margin, swatch = size, int(1.3 * size)
    fonts = [text_font(size, entry.name) for entry in entries]
    font = text_font(size, " ".join([_FRAME, *shown_together(missing, _FRAME)]))
    entries, left_out = entries[:MAX_ENTRIES], entries[MAX_ENTRIES:]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines = [
        (shorten(measure, e.name, own, width // 2), percent(e.share))
        for e, own in zip(entries, fonts, strict=False)
    ]
    widths = (
        measure.textlength(f"{name}  {share}", own)
        for (name, share), own in zip(lines, fonts, strict=False)
    )
    column = max(widths, default=0)
    column = int(column + swatch + 2.5 * size)
    num_columns = max(1, min(len(entries), (width - margin) // column))
    num_rows = -(-len(entries) // num_columns)
    notes = []
    if left_out:
        notes.append(f"and {len(left_out)} more, {percent(sum(e.share for e in left_out))}")
    if missing:
        written = shown_together(missing, _FRAME)
        left = len(missing) - len(written)
        more = [f"{left} more"] if left else []
        notes.append(f"not found: {', '.join([*written, *more])}")
    wrapped = [part for note in notes for part in _wrap(measure, note, font, width - 2 * margin)]
    pitch = int(1.8 * size)
    height = 2 * margin + pitch * (num_rows + len(wrapped))
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for position, (entry, (name, share)) in enumerate(zip(entries, lines, strict=True)):
        x = margin + position // num_rows * column
        y = margin + position % num_rows * pitch
        sheet.paste(draw_swatch(entry.number, swatch, style), (x, y))
        draw.rectangle((x, y, x + swatch - 1, y + swatch - 1), outline=FAINT)
        x, y = x + swatch + size // 2, y + swatch // 2
        draw.text((x, y), name, INK, fonts[position], anchor="lm")
        after = x + draw.textlength(f"{name}  ", fonts[position])
        draw.text((after, y), share, FAINT, text_font(size), anchor="lm")
    for number, line in enumerate(wrapped):
        y = margin + (num_rows + number) * pitch + swatch // 2
        draw.text((margin, y), line, FAINT, font, anchor="lm")
    return sheet


def draw_swatch(number: int, side: int, style: Style) -> Image.Image:
    """A square of a label's colour and texture, as they look over grey."""
    colour = np.tile(style.colours[number].astype(np.float32), (side, side, 1))
    mask = texture_mask(int(style.textures[number]), (side, side), 10)
    colour[mask] = colour[mask] * 0.25 + 190
    return Image.fromarray((0.42 * 175 + 0.58 * colour).astype(np.uint8))


def shorten(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """Cuts a text to what fits, with an ellipsis."""
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(f"{text}…", font) > room:
        text = text[:-1]
    return f"{text}…"


def _wrap(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, room: int
) -> list[str]:
    """Wraps a text into at most three lines of at most `room` pixels; the rest is an ellipsis."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > 3:
        lines = [*lines[:2], shorten(draw, f"{lines[2]} …", font, room)]
    return [shorten(draw, line, font, room) for line in lines]

"""One self-contained page over shards: images with their labels, histograms, a filter by class.

No file, font or script is loaded from anywhere, and the page forbids itself to. Labels travel as
run lengths and are painted by the page, so that one class can be shown alone.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from pipeline.data.inspect.samples import Chapter, PreviewImage
from pipeline.data.pixels.palette import name_colours
from pipeline.data.taxonomy import IGNORE

_FOLDER = Path(__file__).parent
_SHOWN_LEFT_OUT = 100


def render_page(chapters: Sequence[Chapter], title: str) -> str:
    """The HTML of a page that shows chapters in their order; its headline may be any text."""
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    tabs = "".join(
        f'<a href="#{_anchor(chapter)}">{escape(_name(chapter))}'
        f"<small>{chapter.manifest.num_samples:,}</small></a>"
        for chapter in chapters
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    policy += "script-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<nav>{tabs}</nav>
<div class="tools">
<label>Labels <input id="opacity" type="range" min="0" max="100" value="60"></label>
<span id="filter" hidden>Only images with <b id="filter-name"></b>
<button id="filter-clear" type="button">show all</button></span>
</div>
</header>
<noscript><p class="note">Labels and the filter need JavaScript.</p></noscript>
<main>
{"".join(_chapter(chapter) for chapter in chapters)}
</main>
<script>{script}</script>
</body>
</html>
"""


def run_lengths(label: np.ndarray) -> bytes:
    """Pairs of bytes for (H, W) uint8, read by rows: an id, and the length of its run, less one."""
    flat = label.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    repeats = (lengths + 255) // 256
    ids = np.repeat(flat[starts], repeats)
    runs = np.full(len(ids), 256)
    runs[np.cumsum(repeats) - 1] = lengths - (repeats - 1) * 256
    return np.stack([ids, (runs - 1).astype(np.uint8)], 1).tobytes()


def _chapter(chapter: Chapter) -> str:
    manifest = chapter.manifest
    seen = [i for i, pixels in enumerate(manifest.class_pixels) if pixels]
    facts = (
        (f"{manifest.num_samples:,}", "images"),
        (f"{len(manifest.shards):,}", "shards"),
        _size(sum(shard.size for shard in manifest.shards)),
        (f"{len(seen)} of {len(manifest.class_pixels)}", "classes seen"),
        (f"{len(manifest.left_out):,}", "left out"),
    )
    cells = "".join(f"<div><b>{value}</b>{name}</div>" for value, name in facts)
    names = manifest.class_names
    colours = _colours(names)
    return f"""<section id="{_anchor(chapter)}">
<h2>{escape(_name(chapter))}</h2>
<div class="facts">{cells}</div>
<div class="columns">
<aside>
<input class="search" type="search" placeholder="find a class" aria-label="find a class">
<ol class="histogram">{_histogram(chapter, seen, colours)}</ol>
</aside>
<div>
<p class="empty note" hidden>None of the images of this split shows it.</p>
<div class="cards">{"".join(_card(image, names, colours) for image in chapter.images)}</div>
{_left_out(manifest.left_out)}
</div>
</div>
</section>
"""


def _histogram(chapter: Chapter, seen: Iterable[int], colours: list[str]) -> str:
    names, pixels = chapter.manifest.class_names, chapter.manifest.class_pixels
    total, most = sum(pixels), max(pixels)
    rows = []
    for i in sorted(seen, key=lambda i: -pixels[i]):
        # The root keeps rare classes visible.
        width = 100 * (pixels[i] / most) ** 0.5
        rows.append(
            f'<li><button type="button" data-class="{i}" data-name="{escape(names[i])}" '
            f'title="id {i}: {pixels[i]:,} pixels">'
            f'<i style="background:{colours[i]}"></i><span>{escape(names[i])}</span>'
            f"<em>{_percent(pixels[i] / total)}</em>"
            f'<u style="width:{width:.2f}%;background:{colours[i]}"></u></button></li>'
        )
    return "".join(rows)


def _card(shown: PreviewImage, names: Sequence[str], colours: list[str]) -> str:
    height, width = shown.label.shape
    image = base64.b64encode(shown.jpeg).decode()
    mask = base64.b64encode(run_lengths(shown.label)).decode()
    counts = np.bincount(shown.label.ravel(), minlength=256)
    chips = "".join(
        f'<button type="button" data-class="{i}" data-name="{escape(names[i])}">'
        f'<i style="background:{colours[i]}"></i>{escape(names[i])}</button>'
        for i in sorted(shown.classes, key=lambda i: -counts[i])
    )
    blank = _percent(counts[IGNORE] / shown.label.size)
    size = "x".join(str(side) for side in reversed(shown.original_size))
    classes = " ".join(map(str, shown.classes))
    return f"""<figure data-classes="{classes}">
<div class="picture"><img alt="{escape(shown.source)}" width="{width}" height="{height}"
 src="data:image/jpeg;base64,{image}"><canvas width="{width}" height="{height}"
 data-mask="{mask}"></canvas></div>
<figcaption><code title="{escape(shown.source)}">{escape(shown.key)}</code>
<small>{size}, {blank} unlabelled</small><div class="chips">{chips}</div></figcaption>
</figure>
"""


def _left_out(left_out: Sequence[tuple[str, str]]) -> str:
    if not left_out:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(reason)}</td></tr>"
        for name, reason in left_out[:_SHOWN_LEFT_OUT]
    )
    more = len(left_out) - _SHOWN_LEFT_OUT
    rest = f"<p>and {more:,} more in the manifest</p>" if more > 0 else ""
    return (
        f"<details><summary>{len(left_out):,} left out, and why</summary>"
        f"<table>{rows}</table>{rest}</details>"
    )


def _percent(share: float) -> str:
    if 0 < share < 0.0001:
        return "&lt;0.01 %"
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %"


def _size(num_bytes: int) -> tuple[str, str]:
    gib = num_bytes / 2**30
    return (f"{gib:,.2f}", "GiB") if gib >= 0.1 else (f"{1024 * gib:,.1f}", "MiB")


def _name(chapter: Chapter) -> str:
    return f"{chapter.manifest.dataset} / {chapter.manifest.split}"


def _anchor(chapter: Chapter) -> str:
    name = f"{chapter.manifest.dataset}-{chapter.manifest.split}"
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)


def _colours(names: Sequence[str]) -> list[str]:
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in name_colours(names)]

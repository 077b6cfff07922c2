import base64
import errno
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import preview
from jobs.cli import main
from jobs.preview import PreviewConfig, run
from pipeline.data.inspect.page import render_page, run_lengths
from pipeline.data.inspect.samples import load_chapters
from pipeline.data.prepare.config import PrepareConfig, RootsConfig
from pipeline.data.prepare.run import prepare
from pipeline.data.taxonomy import universal
from pipeline.errors import UserError
from tests.support.tiny_roots import encode, write, write_ade20k, write_cityscapes


@pytest.fixture(scope="module")
def shards(tmp_path_factory, local_ray) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    write_cityscapes(folder / "city", num_train=6, num_val=2, size=(60, 120))
    # The only picture with a building (11).
    label = np.full((60, 120), 7, np.uint8)
    label[:30] = 11
    names = "aachen_000004_000019_gtFine_labelIds.png"
    write(folder / "city/gtFine/train/aachen" / names, encode(label, ".png"))
    write_ade20k(folder / "ade")
    (folder / "ade/images/training/ADE_train_00000002.jpg").write_bytes(b"<b>no image</b>")
    given = RootsConfig(cityscapes=str(folder / "city"), ade20k=str(folder / "ade"))
    config = PrepareConfig(roots=given, out=str(folder / "out"), max_bad_fraction=0.5)
    prepare(config)
    return folder / "out"


class Page(HTMLParser):
    """The tags of a page, and every address that one of them loads or links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def decoded_mask(canvas: dict[str, str]) -> np.ndarray:
    """(H, W) uint8, as the page paints it."""
    runs = np.frombuffer(base64.b64decode(canvas["data-mask"]), np.uint8).reshape(-1, 2)
    flat = np.repeat(runs[:, 0], runs[:, 1].astype(int) + 1)
    return flat.reshape(int(canvas["height"]), int(canvas["width"]))


def test_page_shows_pictures_labels_and_histogram(shards, tmp_path):
    out = tmp_path / "preview.html"
    assert main(PreviewConfig, run, ["--shards", str(shards), "--out", str(out), "--count=3"]) == 0
    text = out.read_text()
    page = Page(text)
    assert [section["id"] for section in page.all("section")] == [
        "ade20k-train",
        "ade20k-val",
        "cityscapes-train",
        "cityscapes-val",
    ]
    assert len(page.all("figure")) == 2 + 1 + 3 + 2
    for image, canvas in zip(page.all("img"), page.all("canvas"), strict=True):
        data = base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"))
        size = Image.open(io.BytesIO(data)).size
        assert decoded_mask(canvas).shape == size[::-1]
    # Cityscapes' validation pictures, whole: the top third is sky, and two rows are unlabelled.
    mask = decoded_mask(page.all("canvas")[-1])
    assert (mask[:20] == universal().id_of("sky")).all()
    assert (mask[-2:] == 255).all()
    share = re.search(r"<span>building</span><em>([\d.]+) %</em>", text)
    assert share is not None
    assert float(share[1]) == pytest.approx(100 * 30 / (5 * 58 + 60), abs=0.05)
    assert "1 left out, and why" in text


def test_nothing_is_loaded_from_anywhere(shards):
    chapters = load_chapters(str(shards), None, None, 2, 64, 0)
    text = render_page(chapters, "x")
    for _, attributes in Page(text).tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text)


def test_names_cannot_become_markup(shards):
    evil = "<img src=x onerror=alert(1)>\"'&"
    (chapter,) = load_chapters(str(shards), ("cityscapes",), ("val",), 1, 64, 0)
    image = replace(chapter.images[0], key=evil, source=evil)
    names = tuple(f"{evil}{i}" for i in range(len(chapter.manifest.class_names)))
    left_out = ((evil, evil), (evil, evil))
    manifest = replace(chapter.manifest, dataset=evil, split=evil, classes=names, left_out=left_out)
    text = render_page([replace(chapter, manifest=manifest, images=(image,))], evil)
    page = Page(text)
    assert len(page.all("img")) == 1
    assert page.all("img")[0]["alt"] == evil
    assert page.all("figure")[0].keys() == {"data-classes"}
    assert {b["data-name"] for b in page.all("button") if "data-name" in b} <= set(names)


def test_rare_classes_are_chosen(shards):
    (chapter,) = load_chapters(str(shards), ("cityscapes",), ("train",), 2, 64, 1)
    building = universal().id_of("building")
    assert any(building in image.classes for image in chapter.images)


@pytest.mark.parametrize("shape", [(1, 1), (1, 256), (1, 257), (3, 1000), (40, 50)])
def test_run_lengths_read_back(shape):
    rng = np.random.default_rng(0)
    for levels in (1, 3, 256):
        label = rng.integers(0, levels, shape, np.uint8).astype(np.uint8)
        mask = base64.b64encode(run_lengths(label)).decode()
        canvas = {"data-mask": mask, "height": str(shape[0]), "width": str(shape[1])}
        assert np.array_equal(decoded_mask(canvas), label)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("shards: not set",)),
        (["--shards={0}/nowhere"], ("shards=", "manifest.json")),
        (["--shards={1}", "--datasets=[citiscapes]"], ("'cityscapes'",)),
        (["--shards={1}", "--splits=[test]"], ("splits='test'",)),
        (["--shards={1}", "--count=0"], ("count=0",)),
        (["--shards={1}", "--out={0}"], ("out=",)),
    ],
)
def test_wrong_usage_ends_in_one_message(shards, tmp_path, capsys, arguments, words):
    arguments = [argument.format(tmp_path, shards) for argument in arguments]
    if not any(argument.startswith("--out") for argument in arguments):
        arguments.append(f"--out={tmp_path / 'page.html'}")
    assert main(PreviewConfig, run, arguments) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    for word in words:
        assert word in message


def test_a_real_browser_filters_by_class(shards, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium")
    out = tmp_path / "preview.html"
    config = PreviewConfig(shards=str(shards), out=str(out), datasets=("cityscapes",))
    run(config)
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
    ]
    command += ["--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]

    def shown(fragment: str) -> tuple[int, int]:
        """Pictures on the page, and those among them that are hidden."""
        done = subprocess.run(
            [*command, f"file://{out}{fragment}"], capture_output=True, text=True, timeout=120
        )
        figures = Page(done.stdout).all("figure")
        return len(figures), sum("hidden" in figure for figure in figures)

    assert shown("") == (8, 0)
    assert shown("#class=building") == (8, 7)
    assert shown("#class=car") == (8, 1)


def test_a_full_disk_leaves_no_half_page(tmp_path, monkeypatch):
    page = tmp_path / "p.html"
    page.write_text("the old page")

    def fail(self: Path, *_: object, **__: object) -> None:
        self.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(UserError, match=r"p\.html: cannot be written \(No space left on device\)"):
        preview._write(page, "new")
    assert page.read_bytes() == b"the old page"
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]

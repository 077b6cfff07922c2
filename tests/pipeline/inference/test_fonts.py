"""Labels in any script: a font that has them, else their numbers, never empty boxes."""

import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from pipeline.inference import fonts
from pipeline.inference.fonts import font_path, shown_name, shown_together, text_font
from pipeline.inference.overlay import draw_photo

SCRIPTS = "道路天空"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with one more font, which has the characters of SCRIPTS as filled squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((50, 0))
    for point in ((950, 0), (950, 900), (50, 900)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(letter): "square" for letter in SCRIPTS})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": square})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 50)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / "squares.ttf"
    builder.save(path)
    (tmp_path / "broken.ttf").write_bytes(b"no font")

    def with_fonts(*names: str) -> None:
        for cached in (fonts.font_path, fonts.text_font, fonts._warn_once):
            cached.cache_clear()
        found = tuple(str(tmp_path / name) for name in names)
        monkeypatch.setattr(fonts, "_system_fonts", lambda: found)

    yield with_fonts
    for cached in (fonts.font_path, fonts.text_font, fonts._warn_once):
        cached.cache_clear()


def test_a_font_of_the_machine_that_has_the_characters(machine):
    machine("broken.ttf", "squares.ttf")
    assert shown_name("道路", 3) == "道路"
    assert font_path("道路").endswith("squares.ttf")
    assert text_font(15, "道路").getlength("道路") == pytest.approx(30, abs=1)
    assert "DejaVu" in font_path("café, дорога")
    assert shown_together(["sky", "道路"]) == ["sky"]
    assert shown_together(["天空", "道路"]) == ["天空", "道路"]
    assert shown_together(["天空", "sky"], "not found: ") == ["sky"]


def test_without_one_the_number_and_one_warning(machine, caplog):
    machine("broken.ttf")
    with caplog.at_level(logging.WARNING):
        asked = ["道路", "sky", "\U0001f697"]
        names = [shown_name(name, number) for number, name in enumerate(asked)]
    assert names == ["#0", "sky", "#2"]
    (line,) = caplog.messages
    assert "Noto Sans CJK" in line
    assert "'道路'" in line


def test_a_picture_shows_numbers_instead_of_boxes(machine):
    machine()
    image, ids = np.full((80, 120, 3), 90, np.uint8), np.zeros((80, 120), np.int64)
    ids[:, 60:] = 1
    numbers = draw_photo(image, ids, ["道路", "天空", "汽车"])
    assert numbers.tobytes() == draw_photo(image, ids, ["#0", "#1", "#2"]).tobytes()


def test_joiners_and_variation_marks_need_no_shape(machine):
    machine()
    assert font_path("a\u200db\ufe0f c\u00a0d")

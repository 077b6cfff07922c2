"""Fonts for labels in any script: which one on this machine has all of a text's characters.

DejaVu Sans comes with matplotlib and is there on every machine; it has the alphabets of Europe and
the Near East. For Chinese, Japanese, Korean and others a font of the system is looked for; where
none has a character, a label is written by its number.
"""

import logging
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from pipeline.errors import printable

logger = logging.getLogger(__name__)

_FIRST_TRIED = ("notosanscjk", "notosans", "wqy", "wenquanyi", "droidsansfallback", "unifont")
"""Beginnings of the file names of fonts with many scripts, best first."""

_MOST_TRIED = 400


def shown_name(name: str, number: int) -> str:
    """A label as an image shows it: itself, or `#` and its number where no font can write it."""
    if font_path(name):
        return name
    _warn_once(printable(name))
    return f"#{number}"


def shown_together(names: Sequence[str], frame: str = "") -> list[str]:
    """Texts that are written in one line, without those that its font would leave blank.

    `frame` is what stands between them, and has to be in the same font.
    """
    if font_path(" ".join([frame, *names])):
        return list(names)
    return [name for name in names if font_path(name) == _usual()]


@lru_cache(maxsize=256)
def text_font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """The font in which a text is written, at a size in pixels."""
    return ImageFont.truetype(font_path(text) or _usual(), size)


@lru_cache(maxsize=4096)
def font_path(text: str) -> str:
    """The file of a font that has all of a text's characters; empty where there is none."""
    needed = {ord(letter) for letter in text if _is_drawn(letter)}
    if needed <= _characters(_usual()):
        return _usual()
    for path in _system_fonts():
        if needed <= _characters(path):
            return path
    return ""


def _is_drawn(letter: str) -> bool:
    """Whether a character needs a shape of its own: not a space, a joiner or a variation mark."""
    kind = unicodedata.category(letter)
    return not (kind in ("Zs", "Cf") or "\ufe00" <= letter <= "\ufe0f")


@cache
def _usual() -> str:
    return font_manager.findfont("DejaVu Sans")


@cache
def _system_fonts() -> tuple[str, ...]:
    """Files of the system's fonts, those with many scripts first."""

    def rank(path: str) -> tuple[int, str]:
        name = path.rpartition("/")[2].lower().replace("-", "").replace("_", "")
        places = (i for i, start in enumerate(_FIRST_TRIED) if name.startswith(start))
        return next(places, len(_FIRST_TRIED)), path

    return tuple(sorted(font_manager.findSystemFonts(), key=rank)[:_MOST_TRIED])


@lru_cache(maxsize=_MOST_TRIED + 1)
def _characters(path: str) -> frozenset[int]:
    """The characters of a font that Pillow can draw at any size; none of one that it cannot."""
    try:
        ImageFont.truetype(path, 15)
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def _warn_once(name: str) -> None:
    if _warn_once.cache_info().currsize == 0:
        logger.warning(
            "overlay: no font of this machine has all characters of the label %r: images show "
            "the numbers of such labels (#0 is the first): install a font, such as Noto Sans CJK",
            name,
        )

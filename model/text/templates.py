"""The sentences in which a label is put to the text encoder, and labels of several names.

The lists are those that published figures were made with: CLIP's 80 for ImageNet (SED), CAT-Seg's
single one, ViLD's 14 (FC-CLIP, MAFT+) and TCL's 9 (TIPSv2), letter by letter: a full stop at the
end changes a vector.
"""

import re
from collections.abc import Iterable

from model.config import IMAGENET_TEMPLATES, NO_TEMPLATE, TextConfig

CAT_SEG = ("A photo of a {} in the scene",)
VILD = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)
TCL = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)
NAMED = {"cat-seg": CAT_SEG, "vild": VILD, "tcl": TCL}


def templates_of(setting: str) -> tuple[str, ...]:
    """The sentences that `text.templates` means, each with `{}` where the label goes."""
    if setting == NO_TEMPLATE:
        return ("{}",)
    if setting == IMAGENET_TEMPLATES:
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    return NAMED.get(setting) or tuple(filter(None, setting.splitlines()))


def channels_of(config: TextConfig) -> int:
    """How many vectors of a label an encoder hands out, one after another in a row."""
    return len(templates_of(config.templates)) if config.channels else 1


def texts_of(labels: Iterable[str], config: TextConfig) -> list[list[str]]:
    """What an encoder is given for each label: its names, each in every sentence."""
    templates = templates_of(config.templates)
    return [
        [t.replace("{}", name) for name in names_of(label, config.synonyms) for t in templates]
        for label in labels
    ]


def num_texts(labels: Iterable[str], config: TextConfig) -> int:
    """How many texts an encoder is given for labels."""
    return sum(map(len, texts_of(labels, config)))


def names_of(label: str, synonyms: str) -> tuple[str, ...]:
    """The names of a label that are asked: itself, or its first or all between commas."""
    if synonyms == "none":
        return (label,)
    names = tuple(filter(None, (name.strip() for name in re.split(",", label)))) or (label,)
    return names[:1] if synonyms == "first" else names

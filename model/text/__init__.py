"""The text encoders: labels in, unit vectors out, each label set encoded once.

The room's interface: `build_text_encoder` makes the `TextEncoder` that a configuration names.
"""

from model.text.encoder import TextEncoder
from model.text.encoders import (
    SENTENCE_PREFIX,
    OpenClipEncoder,
    SentenceEncoder,
    StandInEncoder,
    asks_the_hub,
    build_text_encoder,
    require_text_weights,
)
from model.text.open_clip_tower import WEIGHT_SUFFIXES
from model.text.templates import channels_of
from model.text.trained import (
    TrainedTower,
    require_equal_counts,
    tokens_of,
    tower_outline,
    trained_tower,
)

__all__ = [
    "SENTENCE_PREFIX",
    "WEIGHT_SUFFIXES",
    "OpenClipEncoder",
    "SentenceEncoder",
    "StandInEncoder",
    "TextEncoder",
    "TrainedTower",
    "asks_the_hub",
    "build_text_encoder",
    "channels_of",
    "require_equal_counts",
    "require_text_weights",
    "tokens_of",
    "tower_outline",
    "trained_tower",
]

"""MSeg's held-out sets: universal predictions, mapped into each set's classes."""

from collections.abc import Sequence

import numpy as np

from pipeline.checkpoints.provenance import TrainedSize
from pipeline.data.datasets.held_out import HELD_OUT_SETS, held_out_table, open_held_out
from pipeline.data.datasets.held_out.readers import HeldOutReader, HeldOutSource
from pipeline.data.taxonomy import IGNORE, label_text, universal
from pipeline.errors import UserError, did_you_mean
from pipeline.evaluation.config import EvaluateConfig, OtherPolicy
from pipeline.evaluation.items import Item, ItemSource
from pipeline.evaluation.plan import Part, ProtocolPlan, with_policy
from pipeline.evaluation.views import view_of
from pipeline.scoring import DROPPED, AnswerSpace, evenly, space_of


class HeldOutItems(ItemSource):
    """Images of one held-out set."""

    chosen: tuple[HeldOutSource, ...]

    def keys(self) -> Sequence[str]:
        """The images' paths."""
        return [source.image for source in self.chosen]

    def connect(self) -> HeldOutReader:
        """Opens the reader."""
        return open_held_out(self.dataset, self.root)

    def read(self, connection: HeldOutReader, position: int) -> Item:
        """Decodes a file and its label."""
        source = self.chosen[position]
        return Item(source.image, *connection.read(source))


def held_out_space(dataset: str) -> AnswerSpace:
    """The answer space of a set: all universal classes, each for at most one class of the set."""
    table = held_out_table(dataset)
    lut = np.full(256, IGNORE, np.uint8)
    owner: dict[str, int] = {}
    for position, entry in enumerate(table):
        lut[entry.stored_id] = position
        owner |= dict.fromkeys(entry.universal_names, position)
    names = [entry.name for entry in table]
    texts = [label_text(name) for name in universal().classes]
    text_class = [owner.get(name, DROPPED) for name in universal().classes]
    rest = names.index("background") if "background" in names else None
    return space_of(names, texts, lut, text_class, rest)


def held_out_plan(config: EvaluateConfig, size: TrainedSize) -> ProtocolPlan:
    """Plans the held-out sets whose roots are given.

    Raises:
        UserError: There are none, or one is not a held-out set.
    """
    for name in (*config.roots, *config.datasets):
        if name not in HELD_OUT_SETS:
            raise UserError(
                f"roots.{name}: must be one of {', '.join(HELD_OUT_SETS)}"
                f"{did_you_mean(name, HELD_OUT_SETS)}"
            )
    wanted = config.datasets or HELD_OUT_SETS
    chosen = [name for name in HELD_OUT_SETS if name in config.roots and name in wanted]
    if not chosen:
        raise UserError(
            f"roots: protocol held-out needs the download of at least one of "
            f"{', '.join(HELD_OUT_SETS)}: set roots.NAME"
        )
    parts, notes = [], []
    policy = config.other or OtherPolicy()
    geometry = view_of(config, size)
    for name in chosen:
        reader = open_held_out(name, config.roots[name])
        sources = reader.sources()
        if not sources:
            raise UserError(f"roots.{name}={config.roots[name]}: holds no image with a label")
        picked = tuple(sources[i] for i in evenly(len(sources), config.max_images))
        if len(picked) != reader.layout.num_published:
            notes.append(f"{name}: {len(picked)} images; published: {reader.layout.num_published}")
        source = HeldOutItems(name, config.roots[name], picked)
        parts.append(Part(name, source, with_policy(held_out_space(name), policy), geometry))
    if len(chosen) < len(HELD_OUT_SETS):
        notes.append(f"harmonic mean over {len(chosen)} of {len(HELD_OUT_SETS)} sets")
    notes.append(
        f"one scale ({geometry.mode} at {geometry.base_px} px); MSeg takes the best of three"
    )
    # MSeg's mean is over all classes of a set.
    return ProtocolPlan(tuple(parts), "held-out", mean_over="all", notes=tuple(notes))

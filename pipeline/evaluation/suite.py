"""The open-vocabulary suite: each protocol is one set, asked in its own classes.

As CAT-Seg evaluates: one text a class, the first of its names; images squashed to 640 px, seen in
four windows and as a whole; one confusion matrix over the set, and the mean over the classes that
the labels show. The sentence around a name is the checkpoint's own (`text.templates`).
"""

from collections.abc import Sequence

from pipeline.checkpoints.provenance import TrainedSize
from pipeline.data.datasets.suite import (
    BACKGROUND,
    NUM_PUBLISHED,
    background_words,
    open_suite_set,
    suite_table,
)
from pipeline.data.datasets.suite.readers import SuiteReader, SuiteSource
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig, OtherPolicy
from pipeline.evaluation.items import Item, ItemSource
from pipeline.evaluation.plan import Part, ProtocolPlan, with_policy
from pipeline.evaluation.views import View, view_of
from pipeline.scoring import AnswerSpace, evenly

IN_DOMAIN = {
    "a-150": "ade20k",
    "a-847": "ade20k",
    "coco-stuff-171": "coco_panoptic",
}
"""Sets whose training split is one of the seven datasets."""


class SuiteItems(ItemSource):
    """Images of one set of the suite."""

    chosen: tuple[SuiteSource, ...]

    def keys(self) -> Sequence[str]:
        """The images' paths."""
        return [source.image for source in self.chosen]

    def connect(self) -> SuiteReader:
        """Opens the reader."""
        return open_suite_set(self.dataset, self.root)

    def read(self, connection: SuiteReader, position: int) -> Item:
        """Decodes a file and its label."""
        source = self.chosen[position]
        return Item(source.image, *connection.read(source))


def suite_space(dataset: str, synonyms: str = "first") -> AnswerSpace:
    """The answer space of a set: its classes, each by one name or by the best of several."""
    table = suite_table(dataset)
    texts: list[str] = []
    numbers: list[int] = []
    for number, entry in enumerate(table):
        names = entry.synonyms if synonyms == "best" else (entry.name.partition(", ")[0],)
        if entry.name == BACKGROUND:
            names = background_words()
        texts += names
        numbers += [number] * len(names)
    classes = tuple(entry.name for entry in table)
    return AnswerSpace(classes, tuple(texts), tuple(numbers), (), best_text=True)


def suite_plan(config: EvaluateConfig, size: TrainedSize) -> ProtocolPlan:
    """Plans one set of the suite.

    Raises:
        UserError: Its root is not given, or holds something else.
    """
    name = config.protocol
    others = [other for other in (*config.roots, *config.datasets) if other != name]
    if others or name not in config.roots:
        raise UserError(
            f"roots: protocol {name} needs its own set and no other: set roots.{name} to the "
            "download or to a prepared folder" + (f", and leave out {others[0]}" if others else "")
        )
    sources = open_suite_set(name, config.roots[name]).sources()
    picked = tuple(sources[i] for i in evenly(len(sources), config.max_images))
    notes = []
    if len(picked) != NUM_PUBLISHED[name]:
        notes.append(f"{len(picked)} images; published: {NUM_PUBLISHED[name]}")
    geometry = view_of(config, size)
    if geometry != View(mode="cat-seg", base_px=640, window_px=384):
        notes.append(f"geometry: {geometry}; published: squashed to 640 px")
    if config.synonyms != "first":
        notes.append("names: the best of FC-CLIP's synonyms; CAT-Seg: the first of its own")
    policy = config.other or OtherPolicy()
    if policy.policy != "none":
        notes.append(f"other: {policy}; published: none")
    space = with_policy(suite_space(name, config.synonyms), policy)
    part = Part(name, SuiteItems(name, config.roots[name], picked), space, geometry)
    return ProtocolPlan((part,), "classes", mean_over="target", notes=tuple(notes))

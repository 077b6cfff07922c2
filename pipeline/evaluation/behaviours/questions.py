"""Zero-shot figures: held-out classes, and the four behaviours that `protocol` describes.

Every image goes through the network once and is asked different questions.

Shapes: K labels, C embedding, H W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from model.lseg import LSeg
from model.metrics import ConfusionMatrix
from model.prediction import probabilities
from model.sliding import AS_IT_IS, Views
from model.text import TextEncoder
from pipeline.data.ingest.augment import whole_view
from pipeline.data.ingest.stream import Corpus, SampleReader
from pipeline.data.taxonomy import IGNORE, label_text, universal
from pipeline.scoring import evenly
from pipeline.training.questions.labels import label_space

OTHER = "other"

MIN_PRESENT_SHARE = 0.02
"""A class with less than this share of an image's pixels does not count as present."""

NUM_ABSENT = 5
"""Labels of absent classes in each question about the behaviours."""


@dataclass(frozen=True)
class ViewedSample:
    """A validation image as the network sees it."""

    dataset: str
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    label: np.ndarray
    """(H, W) uint8, universal ids or IGNORE."""
    views: Views
    """The network's features, which do not depend on the labels."""


class Asker:
    """Asks a network about images with any labels."""

    def __init__(self, lseg: LSeg, encoder: TextEncoder) -> None:
        self._lseg, self._encoder = lseg.eval(), encoder
        self._device = next(lseg.parameters()).device

    @torch.no_grad()
    def samples(self, corpus: Corpus, per_dataset: int, side_px: int) -> Iterator[ViewedSample]:
        """Up to `per_dataset` images of each dataset, whole, long side `side_px`."""
        reader = SampleReader(corpus)
        for name, size in corpus.sizes.items():
            for index in evenly(size, per_dataset):
                image, label = whole_view(*reader.read(name, index), side_px)
                batch = self._lseg.normalize(torch.from_numpy(image)[None])
                views = Views(self._lseg, batch, AS_IT_IS, keep=True)
                yield ViewedSample(name, image, label, views)

    @torch.no_grad()
    def ask(self, sample: ViewedSample, texts: Sequence[str]) -> np.ndarray:
        """The best of the labels at each pixel: (H, W) int64, positions in `texts`."""
        bands = self._bands(sample, texts)
        # On a CPU a third of what `argmax` takes, which is more than the network.
        return torch.cat([band.max(1).indices[0] for band in bands]).cpu().numpy()

    @torch.no_grad()
    def ask_surely(
        self, sample: ViewedSample, texts: Sequence[str], threshold: float
    ) -> np.ndarray:
        """The best label as in `ask`, or -1 where it is less probable than the threshold."""
        found = []
        for band in self._bands(sample, texts):
            best = band.argmax(1)
            probability = probabilities(band, self._lseg.scores_apart).amax(1)
            found.append(best.where(probability >= threshold, -1)[0])
        return torch.cat(found).cpu().numpy()

    def _bands(self, sample: ViewedSample, texts: Sequence[str]) -> Iterator[torch.Tensor]:
        # One by one: a label has the same vector in every question, and is encoded for one.
        vectors = torch.cat([self._encoder.encode([text]) for text in texts])
        return (band for _, band in sample.views.bands(vectors.to(self._device)))


@dataclass
class ClosedQuestion:
    """Scores of a fixed list of classes, with everything else asked for as "other" or ignored."""

    names: tuple[str, ...]
    """Labels, as words."""
    members: tuple[tuple[str, ...], ...]
    """Universal classes that count as each label."""
    with_other: bool
    """Whether "other" is asked too, and is right for all other labelled pixels."""
    matrix: ConfusionMatrix = field(init=False)

    def __post_init__(self) -> None:
        self.matrix = ConfusionMatrix(len(self.texts))
        taxonomy = universal()
        self._lut = np.full(256, len(self.names) if self.with_other else IGNORE, np.uint8)
        self._lut[IGNORE] = IGNORE
        for position, classes in enumerate(self.members):
            for name in classes:
                self._lut[taxonomy.id_of(name)] = position

    @property
    def texts(self) -> tuple[str, ...]:
        """Prompts for the network."""
        return (*self.names, OTHER) if self.with_other else self.names

    def add(self, asker: Asker, sample: ViewedSample) -> None:
        """Scores one image, if it shows at least one of the labels."""
        target = self._lut[sample.label]
        if (target < len(self.names)).any():
            self.matrix.update(asker.ask(sample, self.texts), target.astype(np.int64))

    @property
    def miou(self) -> float:
        """Mean IoU over the named labels; "other" is no class of its own."""
        return self.matrix.miou(over="target", classes=range(len(self.names)))

    @property
    def chance_miou(self) -> float:
        """Expected mIoU of uniformly random answers at the same class frequencies."""
        counts = self.matrix.counts.sum(1).double()
        share = (counts / counts.sum())[: len(self.names)]
        share = share[share > 0]
        guess = 1 / len(self.texts)
        return float((share * guess / (share + guess - share * guess)).mean())


def class_question(names: Sequence[str], with_other: bool) -> ClosedQuestion:
    """A closed question in which each label is one universal class."""
    texts = tuple(label_text(name) for name in names)
    return ClosedQuestion(texts, tuple((name,) for name in names), with_other)


def super_class_question(members: Mapping[str, tuple[str, ...]]) -> ClosedQuestion:
    """A closed question in which each label is a word for several universal classes."""
    return ClosedQuestion(tuple(members), tuple(members.values()), with_other=True)


class Behaviours:
    """Presence, absence and "other", by one question about each image.

    Half of the classes in the image are named, the other half are not; with them are asked
    NUM_ABSENT labels of classes that are not in the image, and "other".

    Args:
        vocabulary: Universal classes that absent labels are drawn from.
        seed: Seed of the draws.
    """

    def __init__(self, vocabulary: Sequence[str], seed: int) -> None:
        self._vocabulary = tuple(vocabulary)
        self._rng = np.random.default_rng(seed)
        self._recalls: list[float] = []
        self._pixels = {"labelled": 0, "absent": 0, "unnamed": 0, "to_other": 0}

    def add(self, asker: Asker, sample: ViewedSample) -> None:
        """Asks about one image."""
        space = label_space(self._vocabulary)
        target = space.lut[sample.label]
        counts = np.bincount(target.ravel(), minlength=256)[: len(space)]
        present = np.flatnonzero(counts > MIN_PRESENT_SHARE * target.size)
        if len(present) < 2:
            return
        present = self._rng.permutation(present)
        named, unnamed = np.array_split(present, 2)
        absent = self._rng.choice(np.flatnonzero(counts == 0), NUM_ABSENT, replace=False)
        asked = [*named, *absent]
        answer = asker.ask(sample, [*(space.texts[i] for i in asked), OTHER])
        for position, name in enumerate(named):
            self._recalls.append(float((answer[target == name] == position).mean()))
        labelled = target != IGNORE
        hallucinated = (answer >= len(named)) & (answer < len(asked))
        hidden = np.isin(target, unnamed)
        self._pixels["labelled"] += int(labelled.sum())
        self._pixels["absent"] += int((hallucinated & labelled).sum())
        self._pixels["unnamed"] += int(hidden.sum())
        self._pixels["to_other"] += int((answer[hidden] == len(asked)).sum())

    def figures(self) -> dict[str, float]:
        """The shares of the three behaviours, 0..1.

        Returns:
            present: pixels of a named class that get its label, mean over classes and images.
            absent: labelled pixels that get the label of an absent class; low is good.
            other: pixels of unnamed classes that go to "other".
        """
        pixels = self._pixels
        return {
            "present": float(np.mean(self._recalls)),
            "absent": pixels["absent"] / pixels["labelled"],
            "other": pixels["to_other"] / pixels["unnamed"],
        }

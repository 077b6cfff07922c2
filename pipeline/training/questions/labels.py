"""The label space of a run: which classes are trained, as words and as ids.

Labels are ids in the taxonomy of the corpus: the universal classes, or what its shards were made in
(`pipeline.data.shards.union`). A run trains on the classes that its shards show; the network is
asked with their words, in this order, and a look-up table turns ids into positions. A run on
few-shot pairs has "others" and the names of its benchmark's classes instead.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.data.datasets.few_shot.training import OTHERS, class_of
from pipeline.data.shards.format import Manifest
from pipeline.data.shards.union import pixels_in
from pipeline.data.taxonomy import IGNORE, Taxonomy, label_text, spelling, universal
from pipeline.errors import UserError
from pipeline.training.config import TrainConfig

RAREST_SHARE = 1e-3
"""Share of the pixels below which a class counts no more by pixel: a handful of photos would."""


@dataclass(frozen=True)
class LabelSpace:
    """An ordered set of classes of a taxonomy."""

    names: tuple[str, ...]
    """Names in the taxonomy."""
    lut: np.ndarray
    """(256,) uint8: id in the taxonomy -> position in `names`, IGNORE for all others."""
    taxonomy: Taxonomy
    """What the names are classes of."""
    verbatim: bool = False
    """The text encoder is shown the names as they are."""
    held_out: tuple[str, ...] = ()
    """Classes of the taxonomy that are neither trained nor asked."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What the text encoder is shown: the names as words, unless they are `verbatim`."""
        return self.names if self.verbatim else tuple(label_text(name) for name in self.names)

    def __len__(self) -> int:
        return len(self.names)


def label_space(names: Iterable[str], taxonomy: Taxonomy | None = None) -> LabelSpace:
    """The label space of some classes of a taxonomy (universal), in the order given."""
    taxonomy = taxonomy or universal()
    names = tuple(names)
    lut = np.full(256, IGNORE, np.uint8)
    for position, name in enumerate(names):
        lut[taxonomy.id_of(name)] = position
    return LabelSpace(names, lut, taxonomy)


def training_labels(
    manifests: Iterable[Manifest],
    mode: str,
    taxonomy: Taxonomy | None = None,
    held_out: Sequence[str] = (),
) -> LabelSpace:
    """The label space of a training run.

    Args:
        manifests: Manifests of the training split of each dataset in the mixture.
        mode: `"present"` for the classes that have pixels in them, `"all"` for the taxonomy.
        taxonomy: Taxonomy of the corpus; the universal classes if not given.
        held_out: Classes to leave out, as names or as words.

    Raises:
        UserError: No class has a pixel, or one to leave out is none of the taxonomy.
    """
    taxonomy = taxonomy or universal()
    left_out = {_named(name, taxonomy) for name in held_out}
    if mode == "all":
        names = [name for name in taxonomy.classes if name not in left_out]
    else:
        pixels = pixels_in(manifests, taxonomy)
        seen = [name for name, count in zip(taxonomy.classes, pixels, strict=True) if count]
        names = [name for name in seen if name not in left_out]
        if not seen:
            raise UserError(
                "data.shards: no class of the taxonomy has a pixel in the training split"
            )
    if not names:
        raise UserError(
            f"train.held_out={list(held_out)}: leaves no class to train: leave some of them out"
        )
    return replace(label_space(names, taxonomy), held_out=tuple(sorted(left_out)))


def balanced(pixels_K: np.ndarray, balance: float) -> np.ndarray:
    """What a pixel of each label counts by in the loss, by `train.balance`: (K,) float32.

    Args:
        pixels_K: (K,) int64, the labels' pixels in a dataset.
        balance: Exponent, above 0. The mean weight of the dataset's pixels is 1, so that it keeps
            its part in a mixture.
    """
    share = pixels_K / max(1, int(pixels_K.sum()))
    weight = np.maximum(share, RAREST_SHARE) ** -balance
    # What the dataset does not show has no pixel in it, and so no weight of its own.
    weight = np.where(share > 0, weight / (float(share @ weight) or 1.0), 1.0)
    return weight.astype(np.float32)


def _named(word: str, taxonomy: Taxonomy) -> str:
    """The class of a taxonomy with a name, however its words are parted."""
    for name in taxonomy.classes:
        if spelling(label_text(name)) == spelling(label_text(word)):
            return name
    try:
        taxonomy.id_of(word)
    except UserError as error:
        raise UserError(f"train.held_out={word}: {error}") from None
    return word


def ask_for_fewer(
    num_labels: int, drop: float, words: Sequence[str], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, str]:
    """Draws a smaller label set for one batch: some labels, and a word for all the rest.

    Args:
        num_labels: Labels of the run, K.
        drop: Probability that a label is dropped.
        words: Words for "none of these".
        rng: Source of the draw.

    Returns:
        kept: (k,) int64, positions of the labels that stay, at least one.
        lut: (256,) uint8, old position -> new one; dropped labels become k; IGNORE stays.
        word: The word of position k.
    """
    kept = np.flatnonzero(rng.random(num_labels) >= drop)
    if not len(kept):
        kept = rng.integers(0, num_labels, 1)
    lut = np.full(256, IGNORE, np.uint8)
    lut[:num_labels] = len(kept)
    lut[kept] = np.arange(len(kept))
    return kept, lut, str(words[int(rng.integers(len(words)))])


def episode_labels(manifests: Iterable[Manifest], train: TrainConfig) -> LabelSpace | None:
    """Makes the label space of a run on few-shot pairs; None where the shards hold none.

    Args:
        manifests: Manifests of the datasets of the mixture, in its order.
        train: The training settings of the run.

    Raises:
        UserError: Other shards are among them, or a setting does not go with them.
    """
    manifests = list(manifests)
    names = [name for manifest in manifests if (name := class_of(manifest))]
    if not names:
        return None
    if len(names) < len(manifests):
        other = next(manifest.dataset for manifest in manifests if not class_of(manifest))
        raise UserError(
            f"data.shards: {other} is no few-shot benchmark, but {manifests[0].dataset} or others "
            "are: they cannot be trained together: leave one of them out with data.weights"
        )
    if train.label_sets != "own":
        raise UserError(
            f"train.label_sets={train.label_sets}: must be own for few-shot pairs, whose pictures "
            "tell their own class from all others: set it"
        )
    if train.held_out:
        raise UserError(
            f"train.held_out={list(train.held_out)}: has no meaning with few-shot pairs: use "
            "train.test_fold"
        )
    extras = {
        "other.share": train.other.share,
        "distractors.count": train.distractors.count,
        "text_noise": train.text_noise,
    }
    for key, value in extras.items():
        if value:
            raise UserError(
                f"train.{key}={value}: has no meaning with few-shot pairs: leave it out"
            )
    if train.text != "frozen":
        raise UserError(
            f"train.text={train.text}: has no meaning with few-shot pairs: set it to frozen"
        )
    if min(len(names), train.batch_size) >= IGNORE:
        raise UserError(
            f"train.batch_size={train.batch_size}: must be at most {IGNORE - 1} with so many "
            "few-shot classes: lower it"
        )
    asked = (OTHERS, *names)
    lut = np.arange(256, dtype=np.uint8)
    return LabelSpace(asked, lut, Taxonomy("few-shot", asked), verbatim=True)

"""How images are read, classified and counted against their labels, in training and afterwards.

Validation during training and every protocol of evaluation go through here, so that their figures
mean the same. The room lies below both: training does not know evaluation.

Shapes: B batch, T texts, C embedding, K classes, R rows of a band, H W image.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from model.lseg import LSeg
from model.prediction import probabilities
from model.sliding import SlidingConfig, Views
from pipeline.data.taxonomy import IGNORE

DROPPED = -1
"""The class of texts that are asked but cannot win: their classes do not exist in the dataset."""

READ_AHEAD = 2
"""Images that are read while another is scored: more would only fill the memory."""

Position = TypeVar("Position")
Read = TypeVar("Read")
Unreadable = TypeVar("Unreadable", bound=Exception)


@dataclass(frozen=True)
class AnswerSpace:
    """The classes that are scored, and the texts that stand for them.

    A class's probability is the sum over its texts of the softmax over all texts, or the largest of
    them; where texts do not compete (`Network.scores_apart`), always the largest.
    """

    classes: tuple[str, ...]
    texts: tuple[str, ...]
    """The prompts that the network gets; empty where they are given apart from the space."""
    text_class: tuple[int, ...]
    """The class of each text: a position in `classes`; `len(classes)` for none of them; DROPPED."""
    lut: tuple[int, ...]
    """Stored id (0..255) -> position in `classes`, or IGNORE; empty where the stored ids are such
    positions already, of any number of classes."""
    threshold: float | None = None
    """Pixels whose best class is less probable are none of the classes."""
    rest: int | None = None
    """The class that means "none of the others" (a background); it gets those pixels."""
    policy: str = "none"
    """How "other" is handled, in words."""
    best_text: bool = False
    """A class is as probable as the best of its texts, not as all together."""
    offsets: tuple[float, ...] = ()
    """What is added to the logits of each text; empty for nothing."""

    def __post_init__(self) -> None:
        assert len(self.texts) in (0, len(self.text_class))
        assert len(self.offsets) in (0, len(self.texts))
        assert len(self.lut) in (0, 256)
        assert len(self.classes) <= IGNORE or not self.lut

    @property
    def none(self) -> int:
        """The prediction that means none of the classes."""
        return len(self.classes) if self.rest is None else self.rest

    @property
    def one_text_each(self) -> bool:
        """Whether the best text decides, without any probability."""
        used = [number for number in self.text_class if number != DROPPED]
        return self.threshold is None and (self.best_text or len(set(used)) == len(used))

    def target(self, stored: np.ndarray) -> np.ndarray:
        """Stored ids as classes: (H, W) integers, positions or what is no class."""
        if not self.lut:
            return stored
        return np.asarray(self.lut, np.uint8)[stored]


def space_of(
    classes: Sequence[str],
    texts: Sequence[str],
    lut: np.ndarray | Sequence[int],
    text_class: Sequence[int] | None = None,
    rest: int | None = None,
) -> AnswerSpace:
    """An answer space in which, without `text_class`, each text is the class at its place."""
    numbers = tuple(range(len(texts)) if text_class is None else map(int, text_class))
    return AnswerSpace(tuple(classes), tuple(texts), numbers, tuple(int(i) for i in lut), rest=rest)


@torch.no_grad()
def predict(
    lseg: LSeg,
    images: Sequence[np.ndarray],
    text: Tensor,
    space: AnswerSpace,
    sliding: SlidingConfig,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Takes the best class of each pixel of some images, some rows at a time.

    The B images are (H', W', 3) uint8 RGB of one size; `text` is (T, C), or (B, T, C) where every
    image has its own; without a `size` (H, W) the result has that of the images.

    Returns:
        (B, H, W) int64 as from `choose`, on the network's device.
    """
    batch = lseg.normalize(torch.from_numpy(np.stack(images)))
    bands = Views(lseg, batch, sliding, size).bands(text)
    # Where only the order of scores matters, their sum is as good as their mean, and rounds less.
    views = 1 if space.one_text_each and not space.offsets else sliding.num_views
    apart = lseg.scores_apart
    return torch.cat([choose(band / views, space, apart) for _, band in bands], dim=1)


@torch.no_grad()
def choose(logits_BTRW: Tensor, space: AnswerSpace, apart: bool = False) -> Tensor:
    """Takes the best class of each pixel from logits, their mean over views if there are several.

    `apart` says that each logit is one of its text alone.

    Returns:
        (B, R, W) int64: positions in `space.classes`, or `space.none`.
    """
    if space.offsets:
        offsets_T = torch.tensor(space.offsets, device=logits_BTRW.device)
        logits_BTRW = logits_BTRW + offsets_T[:, None, None]
    classes = torch.tensor(space.text_class, device=logits_BTRW.device)
    kept = (classes != DROPPED).nonzero()[:, 0]
    if space.one_text_each:
        return classes[kept[logits_BTRW[:, kept].argmax(1)]]
    count = max(len(space.classes), int(classes.max()) + 1)
    sums = logits_BTRW.new_zeros((len(logits_BTRW), count, *logits_BTRW.shape[2:]))
    of_texts = probabilities(logits_BTRW, apart)[:, kept]
    if space.best_text or apart:
        sums.index_reduce_(1, classes[kept], of_texts, "amax")
    else:
        sums.index_add_(1, classes[kept], of_texts)
    probability, best = sums.max(1)
    if space.threshold is None:
        return best
    return best.where(probability >= space.threshold, space.none)


def read_ahead(
    read: Callable[[Position], Read], positions: Sequence[Position], bad: type[Unreadable]
) -> Iterator[tuple[Position, Read | Unreadable]]:
    """Reads on a thread while the caller works, and yields in order.

    A `bad` error is one over a single image, and is yielded in its place; any other is raised.
    """

    def attempt(position: Position) -> Read | Unreadable:
        try:
            return read(position)
        except bad as error:
            return error

    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        pending = deque(pool.submit(attempt, position) for position in positions[:READ_AHEAD])
        for number, position in enumerate(positions):
            found = pending.popleft().result()
            if number + READ_AHEAD < len(positions):
                pending.append(pool.submit(attempt, positions[number + READ_AHEAD]))
            yield position, found


def evenly(size: int, limit: int) -> tuple[int, ...]:
    """Up to `limit` positions, spread evenly over `size`; all where the limit is 0."""
    count = min(size, limit or size)
    return tuple(i * size // count for i in range(count))

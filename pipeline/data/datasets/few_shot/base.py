"""What the three few-shot benchmarks share: episodes, and masks of one class at a time.

An episode of the zero-shot form is one image and one class; its label is 1 where that class is,
0 elsewhere, IGNORE where the benchmark says so.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.data.datasets.base import has_folders
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.encode import decode_image
from pipeline.data.pixels.official import decode_index_png
from pipeline.data.taxonomy import IGNORE
from pipeline.errors import UserError
from pipeline.storage.base import Storage

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Episode:
    """One image with one class."""

    image: str
    """Path in the root."""
    mask: str
    """Path in the root."""
    class_id: int
    """The benchmark's number of the class, from 0 (FSS-1000: test classes from 760)."""


class FewShotSet(ABC):
    """One benchmark's images, folds and episodes."""

    name: ClassVar[str]
    folder: ClassVar[str]
    """The folder's usual name, where a root holds it."""
    needs: ClassVar[tuple[str, ...]]
    """Folders by which the benchmark is recognised."""
    names: ClassVar[str]
    """The shipped list of the names of the classes that episodes can have."""
    first_class: ClassVar[int] = 0
    """The class id of the first name."""
    num_folds: ClassVar[int] = 4
    has_borders: ClassVar[bool] = False
    """Whether the masks hold IGNORE where nothing counts."""

    def __init__(self, root: Storage, base: str = "", splits: Storage | None = None) -> None:
        self.root, self.base, self._splits = root, base, splits
        self.notes: list[str] = []
        """What keeps the figures from being the published protocol's; filled by `episodes`."""

    @classmethod
    def recognises(cls, root: Storage, base: str) -> bool:
        """Whether a folder looks like this benchmark's."""
        return has_folders(root, base, *cls.needs)

    def class_names(self) -> dict[int, str]:
        """Class id -> label text as LSeg has it, of all classes that episodes can have."""
        return dict(enumerate(shipped_lines(self.names), self.first_class))

    @classmethod
    @abstractmethod
    def test_ids(cls, fold: int) -> tuple[int, ...]:
        """The test classes of a fold, in rising order."""

    @abstractmethod
    def episodes(self, fold: int, seed: int = 0) -> tuple[Episode, ...]:
        """The test episodes of a fold in the order in which HSNet draws them.

        Raises:
            UserError: A list is missing or damaged.
        """

    @abstractmethod
    def training_pairs(self, splits: Storage) -> dict[int, list[Episode]]:
        """The pairs that HSNet trains on, by class; a fold trains on those that it does not test.

        Raises:
            UserError: A list is missing or damaged.
        """

    def training_names(self, splits: Storage) -> dict[int, str]:
        """Class id -> label text of the classes of `training_pairs`."""
        return self.class_names()

    def mask(self, data: bytes, episode: Episode) -> np.ndarray:
        """Decodes a mask to (H, W) uint8: 0, 1, or IGNORE."""
        ids = decode_index_png(data, episode.mask, ("L", "P"))
        mask = (ids == episode.class_id + 1).astype(np.uint8)
        if self.has_borders:
            mask[ids == IGNORE] = IGNORE
        return mask

    def read(self, episode: Episode) -> tuple[np.ndarray, np.ndarray]:
        """Reads an episode.

        Returns:
            image: (H, W, 3) uint8 RGB.
            mask: (H, W) uint8: 1 for the class, 0 elsewhere, IGNORE where nothing counts.

        Raises:
            BadSample: A file is missing or damaged, or the sizes differ.
        """
        try:
            pixels = decode_image(self.root.read(episode.image))
            mask = self.mask(self.root.read(episode.mask), episode)
        except FileNotFoundError as error:
            raise BadSample(str(error)) from None
        if mask.shape != pixels.shape[:2]:
            raise BadSample(
                f"{episode.image} is {pixels.shape[:2]} but its mask {mask.shape} (height, width)"
            )
        return np.ascontiguousarray(pixels[:, :, ::-1]), mask

    def _path(self, *parts: str) -> str:
        return "/".join(part for part in (self.base, *parts) if part)


def hsnet_list(splits: Storage, name: str, key: str = "few_shot_splits") -> str:
    """The text of a list in HSNet's `splits` folder, which the setting `key` gives.

    Raises:
        UserError: There is no such list.
    """
    try:
        return splits.read(name).decode()
    except FileNotFoundError:
        raise UserError(
            f"{key}={splits.uri}: must hold {name}: give HSNet's splits folder"
        ) from None


def shipped_lines(name: str) -> list[str]:
    """The lines of a list that comes with this package."""
    return (_FOLDER / name).read_text(encoding="utf-8").splitlines()

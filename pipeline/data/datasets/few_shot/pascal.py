"""PASCAL-5i: VOC 2012 with SBD's masks, four folds of five classes.

    VOC2012/JPEGImages/*.jpg    VOC2012/SegmentationClassAug/*.png    ids 0..20, 255 border

A fold's test list names pairs of picture and class (346, 451, 725 and 346 of them); an evaluation
has 1000 episodes, the list over and over. Border pixels do not count.
"""

import re

import numpy as np

from pipeline.data.datasets.base import has_folders
from pipeline.data.datasets.few_shot.base import Episode, FewShotSet, is_shipped, shipped_lines
from pipeline.data.pixels.official import decode_index_png
from pipeline.data.taxonomy import IGNORE
from pipeline.errors import UserError
from pipeline.storage.base import Storage

NUM_EPISODES = 1000
LIST_SIZES = (346, 451, 725, 346)
"""Pairs in the published test list of each fold."""
TRAINING_SIZES = (2286, 3425, 5883, 2086)
"""Pairs in the published training list of the classes of each fold."""


class PASCAL5i(FewShotSet):
    """Twenty classes; fold f tests 5f to 5f + 4."""

    name = "pascal-5i"
    layout = "JPEGImages and SegmentationClassAug"
    folder = "VOC2012"

    @classmethod
    def recognises(cls, root: Storage, base: str) -> bool:
        """Whether a folder looks like this benchmark's."""
        return has_folders(root, base, "JPEGImages", "SegmentationClassAug")

    def class_names(self) -> dict[int, str]:
        """The 20 names of LSeg's label file."""
        return dict(enumerate(shipped_lines("pascal_classes.txt")))

    @classmethod
    def test_ids(cls, fold: int) -> tuple[int, ...]:
        """Five of them."""
        return tuple(range(5 * fold, 5 * fold + 5))

    def episodes(self, fold: int, seed: int = 0) -> tuple[Episode, ...]:
        """1000 episodes: the list of pairs in its order, from the start again when it ends."""
        pairs = self._pairs(fold)
        there = {
            entry.path.rpartition("/")[2].removesuffix(".png")
            for entry in self.root.list(self._path("SegmentationClassAug"))
        }
        found = [(name, class_id) for name, class_id in pairs if name in there]
        if len(found) < len(pairs) or len(pairs) != LIST_SIZES[fold]:
            self.notes.append(
                f"fold {fold}: {len(found)} of {len(pairs)} listed pairs are there; published: "
                f"{LIST_SIZES[fold]}"
            )
        if not found:
            raise UserError(
                f"roots.pascal-5i={self.root.uri}: must hold the pictures of the list of fold "
                f"{fold}: none of {len(pairs)} is there"
            )
        cycled = (found[number % len(found)] for number in range(NUM_EPISODES))
        return tuple(
            Episode(
                self._path("JPEGImages", f"{name}.jpg"),
                self._path("SegmentationClassAug", f"{name}.png"),
                class_id,
            )
            for name, class_id in cycled
        )

    def _pairs(self, fold: int) -> list[tuple[str, int]]:
        """Picture and class (from 0) of each line `2007_000033__01` of the fold's list."""
        name = f"pascal/val/fold{fold}.txt"
        if self._splits is not None:
            try:
                lines = self._splits.read(name).decode().split()
            except FileNotFoundError:
                raise UserError(
                    f"splits={self._splits.uri}: must hold {name}: give HSNet's splits folder"
                ) from None
        elif is_shipped(f"pascal_val_fold{fold}.txt"):
            lines = shipped_lines(f"pascal_val_fold{fold}.txt")
        else:
            raise UserError(
                f"splits='': must be HSNet's splits folder, with {name}, for pascal-5i: set it"
            )
        return self._parsed(lines, name, fold)

    def training_pairs(self, splits: Storage) -> dict[int, list[Episode]]:
        """The lines of `pascal/trn/fold*.txt`, each of which names the pairs of its own classes."""
        by_class: dict[int, list[Episode]] = {}
        for fold in range(self.num_folds):
            name = f"pascal/trn/fold{fold}.txt"
            try:
                lines = splits.read(name).decode().split()
            except FileNotFoundError:
                raise UserError(
                    f"few_shot_splits={splits.uri}: must hold {name}: give HSNet's splits folder"
                ) from None
            if len(lines) != TRAINING_SIZES[fold]:
                self.notes.append(
                    f"fold {fold}: {len(lines)} training pairs; published: {TRAINING_SIZES[fold]}"
                )
            for picture, class_id in self._parsed(lines, name, fold):
                by_class.setdefault(class_id, []).append(
                    Episode(
                        self._path("JPEGImages", f"{picture}.jpg"),
                        self._path("SegmentationClassAug", f"{picture}.png"),
                        class_id,
                    )
                )
        return by_class

    def _parsed(self, lines: list[str], name: str, fold: int) -> list[tuple[str, int]]:
        pairs = []
        for line in lines:
            match = re.fullmatch(r"(\d{4}_\d{6})__(\d\d)", line)
            if not match or int(match[2]) - 1 not in self.class_ids(fold):
                raise UserError(f"{name}: {line[:60]!r}: must be NAME__CLASS of this fold")
            pairs.append((match[1], int(match[2]) - 1))
        return pairs

    def mask(self, data: bytes, episode: Episode) -> np.ndarray:
        """The pixels of the class; borders are IGNORE."""
        ids = decode_index_png(data, episode.mask, ("L", "P"))
        mask = (ids == episode.class_id + 1).astype(np.uint8)
        mask[ids == IGNORE] = IGNORE
        return mask

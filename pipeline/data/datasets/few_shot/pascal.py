"""PASCAL-5i: VOC 2012 with SBD's masks, four folds of five classes.

    VOC2012/JPEGImages/*.jpg    VOC2012/SegmentationClassAug/*.png    ids 0..20, 255 border

A fold's test list names pairs of image and class (346, 451, 725 and 346 of them); an evaluation
has 1000 episodes, the list over and over. Border pixels do not count.
"""

import re

from pipeline.data.datasets.few_shot.base import Episode, FewShotSet, hsnet_list, shipped_lines
from pipeline.errors import UserError
from pipeline.storage.base import Storage

NUM_EPISODES = 1000
LIST_SIZES = (346, 451, 725, 346)
"""Pairs in the published test list of each fold."""
TRAINING_SIZES = (2286, 3425, 5883, 2086)
"""Pairs in the published training list of the classes of each fold."""

_IMAGES, _MASKS = "JPEGImages", "SegmentationClassAug"


class PASCAL5i(FewShotSet):
    """Twenty classes; fold f tests 5f to 5f + 4."""

    name = "pascal-5i"
    folder = "VOC2012"
    needs = (_IMAGES, _MASKS)
    names = "pascal_classes.txt"
    has_borders = True

    @classmethod
    def test_ids(cls, fold: int) -> tuple[int, ...]:
        """The five test classes of a fold."""
        return tuple(range(5 * fold, 5 * fold + 5))

    def episodes(self, fold: int, seed: int = 0) -> tuple[Episode, ...]:
        """1000 episodes: the list of pairs in its order, from the start again when it ends."""
        pairs = self._pairs(fold)
        there = {
            entry.path.rpartition("/")[2].removesuffix(".png")
            for entry in self.root.list(self._path(_MASKS))
        }
        found = [(name, class_id) for name, class_id in pairs if name in there]
        if len(found) < len(pairs) or len(pairs) != LIST_SIZES[fold]:
            self.notes.append(
                f"fold {fold}: {len(found)} of {len(pairs)} listed pairs are there; published: "
                f"{LIST_SIZES[fold]}"
            )
        if not found:
            raise UserError(
                f"roots.pascal-5i={self.root.uri}: must hold the images of the list of fold "
                f"{fold}: none of {len(pairs)} is there"
            )
        cycled = (found[number % len(found)] for number in range(NUM_EPISODES))
        return tuple(self._episode_of(name, class_id) for name, class_id in cycled)

    def _episode_of(self, name: str, class_id: int) -> Episode:
        image, mask = f"{_IMAGES}/{name}.jpg", f"{_MASKS}/{name}.png"
        return Episode(self._path(image), self._path(mask), class_id)

    def _pairs(self, fold: int) -> list[tuple[str, int]]:
        """Image and class (from 0) of each line `2007_000033__01` of the fold's list."""
        name = f"pascal/val/fold{fold}.txt"
        if self._splits is not None:
            return self._parsed(hsnet_list(self._splits, name, "splits").split(), name, fold)
        return self._parsed(shipped_lines(f"pascal_val_fold{fold}.txt"), name, fold)

    def training_pairs(self, splits: Storage) -> dict[int, list[Episode]]:
        """The lines of `pascal/trn/fold*.txt`, each of which names the pairs of its own classes."""
        by_class: dict[int, list[Episode]] = {}
        for fold in range(self.num_folds):
            name = f"pascal/trn/fold{fold}.txt"
            lines = hsnet_list(splits, name).split()
            if len(lines) != TRAINING_SIZES[fold]:
                self.notes.append(
                    f"fold {fold}: {len(lines)} training pairs; published: {TRAINING_SIZES[fold]}"
                )
            for image, class_id in self._parsed(lines, name, fold):
                by_class.setdefault(class_id, []).append(self._episode_of(image, class_id))
        return by_class

    def _parsed(self, lines: list[str], name: str, fold: int) -> list[tuple[str, int]]:
        pairs = []
        for line in lines:
            match = re.fullmatch(r"(\d{4}_\d{6})__(\d\d)", line)
            if not match or int(match[2]) - 1 not in self.test_ids(fold):
                raise UserError(f"{name}: {line[:60]!r}: must be NAME__CLASS of this fold")
            pairs.append((match[1], int(match[2]) - 1))
        return pairs

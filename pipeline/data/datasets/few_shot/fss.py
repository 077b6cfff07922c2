"""FSS-1000: a thousand classes of ten images each; 240 of them are for testing.

    FSS-1000/<class>/{1..10}.jpg    FSS-1000/<class>/{1..10}.png    foreground from 128 on

Zero-shot every test image is one episode, 2400 in all. Class ids of the test classes run from 760
in the order of their names.
"""

import io

import numpy as np
from PIL import Image

from pipeline.data.datasets.few_shot.base import Episode, FewShotSet, hsnet_list, shipped_lines
from pipeline.data.pixels.checks import MAX_PIXELS, bad_sample_errors, check_size
from pipeline.errors import UserError
from pipeline.storage.base import Storage

IMAGES_PER_CLASS = 10
NUM_TEST_CLASSES = 240
NUM_TRAINING_CLASSES = 520


class FSS1000(FewShotSet):
    """240 test classes in one fold."""

    name = "fss-1000"
    needs = ("one folder for each class, such as abe's_flyingfish",)
    folder = "FSS-1000"
    names = "fss_test_classes.txt"
    first_class = 760
    num_folds = 1

    @classmethod
    def recognises(cls, root: Storage, base: str) -> bool:
        """Whether a folder looks like this benchmark's."""
        return bool(set(root.folders(base)) & set(shipped_lines(cls.names)))

    @classmethod
    def test_ids(cls, fold: int) -> tuple[int, ...]:
        """All test classes, whatever the fold; their folders' names are LSeg's labels."""
        return tuple(range(cls.first_class, cls.first_class + NUM_TEST_CLASSES))

    def episodes(self, fold: int = 0, seed: int = 0) -> tuple[Episode, ...]:
        """Every image of every test class, by class and by file name."""
        there = set(self.root.folders(self.base))
        episodes = []
        for class_id, name in self.class_names().items():
            if name not in there:
                continue
            paths = {entry.path for entry in self.root.list(self._path(name))}
            for path in sorted(paths):
                mask = f"{path.removesuffix('.jpg')}.png"
                if path.endswith(".jpg") and mask in paths:
                    episodes.append(Episode(path, mask, class_id))
        wanted = len(self.class_names()) * IMAGES_PER_CLASS
        if not episodes:
            raise UserError(f"roots.fss-1000={self.root.uri}: must hold JPEGs with PNG masks")
        if len(episodes) != wanted:
            self.notes.append(f"{len(episodes)} test images are there; published: {wanted}")
        return tuple(episodes)

    def training_names(self, splits: Storage) -> dict[int, str]:
        """The folder names of `fss/trn.txt`, in their order by name."""
        names = sorted(hsnet_list(splits, "fss/trn.txt").splitlines())
        for name in names:
            if not name or "/" in name or name[0] == "." or name in self.class_names().values():
                raise UserError(
                    f"{splits.uri}/fss/trn.txt: {name[:60]!r}: must be the name of a class's "
                    "folder, and none of the test classes"
                )
        return dict(enumerate(names))

    def training_pairs(self, splits: Storage) -> dict[int, list[Episode]]:
        """Every image of every training class."""
        names = self.training_names(splits)
        if len(names) != NUM_TRAINING_CLASSES:
            self.notes.append(
                f"{len(names)} training classes listed; published: {NUM_TRAINING_CLASSES}"
            )
        return {
            class_id: [
                Episode(entry.path, f"{entry.path.removesuffix('.jpg')}.png", class_id)
                for entry in sorted(self.root.list(self._path(name)), key=lambda e: e.path)
                if entry.path.endswith(".jpg")
            ]
            for class_id, name in names.items()
        }

    def mask(self, data: bytes, episode: Episode) -> np.ndarray:
        """The foreground; nothing is ignored."""
        with (
            bad_sample_errors(episode.mask),
            Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image,
        ):
            check_size(episode.mask, *image.size, MAX_PIXELS)
            return (np.asarray(image.convert("L")) >= 128).astype(np.uint8)

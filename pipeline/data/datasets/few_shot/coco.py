"""COCO-20i: COCO 2014's validation images, four folds of twenty classes.

    COCO2014/val2014/*.jpg    COCO2014/annotations/val2014/*.png    class id + 1; 0 background

Each of the 1000 episodes draws a class of the fold, then one of that class's images, from numpy's
legacy generator with seed 0: the lists of images and their order are part of the protocol. They
come as pickles of plain lists (`coco/val/fold0.pkl`), which are read without ever resolving a name,
so that none of their content can run. Without them the lists are made from the masks, in the order
of the file names; the episodes are then others than the published ones, and a note says so.
"""

import io
import json
import pickle
import pickletools
from typing import Any

import numpy as np

from pipeline.data.datasets.few_shot.base import Episode, FewShotSet
from pipeline.data.pixels.official import decode_index_png
from pipeline.errors import UserError
from pipeline.storage.base import Storage

NUM_EPISODES = 1000
LIST_SIZES = (35783, 17912, 14563, 14315)
"""Pairs in the published test lists of each fold."""
NUM_TRAINING_PAIRS = 170491
"""Pairs of all 80 classes in the published training lists."""
MAX_LIST_BYTES = 64 << 20


class COCO20i(FewShotSet):
    """Eighty classes; fold f tests f, f + 4, ..., f + 76."""

    name = "coco-20i"
    folder = "COCO2014"
    needs = ("val2014", "annotations/val2014")
    names = "coco_classes.txt"

    @classmethod
    def test_ids(cls, fold: int) -> tuple[int, ...]:
        """The twenty test classes of a fold."""
        return tuple(range(fold, 80, 4))

    def episodes(self, fold: int, seed: int = 0) -> tuple[Episode, ...]:
        """1000 draws; zero-shot, so no support images are drawn in between."""
        by_class = None if self._splits is None else _listed(self._splits, f"val/fold{fold}")
        if by_class is None:
            by_class = self._from_masks(fold)
            self.notes.append(
                f"fold {fold}: the lists of images were made from the masks, since splits holds "
                f"no coco/val/fold{fold}.pkl: the episodes are not the published ones"
            )
        elif (size := sum(map(len, by_class.values()))) != LIST_SIZES[fold]:
            self.notes.append(f"fold {fold}: {size} pairs listed; published: {LIST_SIZES[fold]}")
        class_ids = self.test_ids(fold)
        # Numpy's old generator, whose draws are the protocol.
        draws = np.random.RandomState(seed)
        episodes = []
        for _ in range(NUM_EPISODES):
            class_id = class_ids[draws.choice(len(class_ids), 1, replace=False)[0]]
            if not (names := by_class.get(class_id)):
                raise UserError(
                    f"roots.coco-20i={self.root.uri}: class {self.class_names()[class_id]} of fold "
                    f"{fold} has no image: every class must have one"
                )
            name = names[draws.choice(len(names), 1, replace=False)[0]]
            episodes.append(self._episode_of(name, class_id))
        return tuple(episodes)

    def _episode_of(self, name: str, class_id: int) -> Episode:
        mask = f"annotations/{name.removesuffix('.jpg')}.png"
        return Episode(self._path(name), self._path(mask), class_id)

    def training_pairs(self, splits: Storage) -> dict[int, list[Episode]]:
        """The lists of `coco/trn/fold*.pkl`: each holds the pairs of the three other folds."""
        by_class: dict[int, list[Episode]] = {}
        for fold in (0, 1):  # Between them they hold every class.
            if (listed := _listed(splits, f"trn/fold{fold}")) is None:
                raise UserError(
                    f"few_shot_splits={splits.uri}: must hold coco/trn/fold{fold}.pkl: give "
                    "HSNet's splits folder"
                )
            for class_id, names in listed.items():
                if class_id in self.class_names() and class_id not in self.test_ids(fold):
                    by_class[class_id] = [self._episode_of(name, class_id) for name in names]
                elif names:
                    raise UserError(
                        f"{splits.uri}/coco/trn/fold{fold}.pkl: has images of class {class_id}, "
                        "which that fold tests or no list names: take HSNet's file"
                    )
        total = sum(map(len, by_class.values()))
        if total != NUM_TRAINING_PAIRS:
            self.notes.append(f"{total} training pairs listed; published: {NUM_TRAINING_PAIRS}")
        return by_class

    def _from_masks(self, fold: int) -> dict[int, list[str]]:
        wanted = set(self.test_ids(fold))
        by_class: dict[int, list[str]] = {class_id: [] for class_id in sorted(wanted)}
        for entry in self.root.list(self._path("annotations/val2014")):
            if not entry.path.endswith(".png"):
                continue
            stem = entry.path.rpartition("/")[2].removesuffix(".png")
            ids = decode_index_png(self.root.read(entry.path), entry.path, ("L", "P"))
            for class_id in {int(value) - 1 for value in np.unique(ids)} & wanted:
                by_class[class_id].append(f"val2014/{stem}.jpg")
        return by_class


def _listed(splits: Storage, name: str) -> dict[int, list[str]] | None:
    """A list of HSNet's for COCO, by class; None where there is none."""
    for suffix, load in (("pkl", load_plain_pickle), ("json", json.loads)):
        path = f"coco/{name}.{suffix}"
        where = f"{splits.uri}/{path}"
        try:
            if splits.size(path) > MAX_LIST_BYTES:
                raise UserError(f"{where}: must be below {MAX_LIST_BYTES >> 20} MiB")
            return _as_lists(load(splits.read(path)))
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(
                f"{where}: must hold a mapping of class ids to image names ({error}): take "
                "HSNet's file"
            ) from None
    return None


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, numbers and strings; anything with a name of code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it names {module}.{name}, and only lists and strings are allowed")


_PLAIN_STEPS = frozenset(
    "PROTO FRAME STOP MARK NONE INT BININT BININT1 BININT2 LONG LONG1 UNICODE BINUNICODE "
    "SHORT_BINUNICODE STRING BINSTRING SHORT_BINSTRING EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT "
    "DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET".split()
)
"""What a pickle of lists and texts consists of: nothing has a name of code, and no tuple, whose
hash as a key a few bytes could make endless."""


def load_plain_pickle(data: bytes) -> Any:
    """Reads a pickle of plain containers, in memory and time that its length bounds.

    Raises:
        ValueError: It is damaged, or holds anything else; nothing of it has run.
    """
    try:
        for number, (step, argument, _) in enumerate(pickletools.genops(data)):
            if step.name not in _PLAIN_STEPS:
                raise ValueError(
                    f"it holds a step {step.name}, and only lists and strings are allowed"
                )
            # The memo is a list of that length; and numbers of one hash are slow keys.
            if isinstance(argument, int) and (
                argument.bit_length() > 63 or ("PUT" in step.name and argument > number)
            ):
                raise ValueError("it holds a number that is too large")
        return _PlainUnpickler(io.BytesIO(data)).load()
    except _NO_PICKLE as error:
        raise ValueError(f"not a pickle: {str(error)[:200]}") from None


_NO_PICKLE = (
    ValueError,
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
)


def _as_lists(content: Any) -> dict[int, list[str]]:
    lists = {}
    for key, names in dict(content).items():
        for name in names:
            if not isinstance(name, str) or not name.endswith(".jpg"):
                shown = repr(name[:60]) if isinstance(name, str) else f"a {type(name).__name__}"
                raise ValueError(f"{shown} is no image's name")
        lists[int(key)] = list(names)
    return lists

"""The training pairs of the few-shot benchmarks, as datasets that the conversion can store.

LSeg trains zero-shot on pairs of an image and one class: the pixels of that class against all
others, which are background, whatever they show: other trained classes, those of the test fold, and
PASCAL's borders too. Each class becomes one dataset of stored labels 0 and 1, such as
`pascal_5i_006`, so that a fold is a choice of datasets, and COCO's uniform draw of classes are
equal weights. Which word stands for 1 is said by the taxonomy's name in the manifest.
"""

import logging
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.data.datasets.base import LeftOut, Listing, Reader, Source, Split, safe_key
from pipeline.data.datasets.few_shot import FEW_SHOT_SETS, open_few_shot
from pipeline.data.datasets.few_shot.base import Episode, FewShotSet
from pipeline.data.shards.format import Manifest
from pipeline.data.taxonomy import Taxonomy, id_table
from pipeline.data.taxonomy.labelling import Labelling
from pipeline.errors import UserError
from pipeline.storage.base import Storage

logger = logging.getLogger(__name__)

OTHERS = "others"
"""LSeg's word for all that is not the class of a pair."""
_TAXONOMY = "episode:"


@dataclass(frozen=True)
class PairsOfClass:
    """How to open one class's pairs; travels to the workers of a conversion."""

    benchmark: str
    root: str
    class_id: int

    @property
    def dataset(self) -> str:
        """The name of the shards' dataset."""
        return f"{self.benchmark.replace('-', '_')}_{self.class_id:03d}"


class PairReader(Reader):
    """Reads the training pairs of one class."""

    layout = "see pipeline.data.datasets.few_shot"
    inner_folders: ClassVar = ()
    splits: ClassVar[tuple[Split, ...]] = ("train",)

    def __init__(
        self,
        few_shot: FewShotSet,
        pairs: PairsOfClass,
        word: str = "",
        listed: Sequence[Episode] = (),
        masks: Container[str] = (),
    ) -> None:
        """Creates a reader; `labelling` needs the class's name, `listing` its pairs and masks."""
        self.name = pairs.dataset  # type: ignore[misc]
        self.pairs, self._few_shot, self._word = pairs, few_shot, word
        self._listed, self._masks = listed, masks
        super().__init__(few_shot.root)

    def _native_ids(self) -> Iterable[int]:
        return (0, 1)

    @property
    def labelling(self) -> Labelling:
        """Stored labels: 0 the others, 1 the class."""
        taxonomy = Taxonomy(f"{_TAXONOMY}{self._word}", (OTHERS, "class"))
        return Labelling(taxonomy, id_table({0: 0, 1: 1}).tobytes())

    def _listing(self, split: Split) -> Listing:
        if split != "train":
            return Listing((), ())
        sources, left_out = [], []
        for pair in self._listed:
            name = pair.image.rpartition("/")[2].rpartition(".")[0]
            if pair.mask in self._masks:
                sources.append(Source(safe_key(name), pair.image, pair.mask))
            else:
                left_out.append(LeftOut(pair.image, "is in HSNet's list, but has no mask here"))
        return Listing.of(sources, left_out)

    def _decode(self, data: bytes, source: Source) -> np.ndarray:
        episode = Episode(source.image, source.label, self.pairs.class_id)
        mask = self._few_shot.mask(data, episode)
        # In training a border is background: the reference's loss ignores nothing.
        return (mask == 1).astype(np.uint8)


def open_training(benchmark: str, root: str, splits: Storage) -> Iterator[PairReader]:
    """Opens a reader for each class of a benchmark that any fold trains on; see `open_few_shot`.

    Raises:
        UserError: The root or a list does not look as it should.
    """
    few_shot = open_few_shot(benchmark, root)
    by_class, names = few_shot.training_pairs(splits), few_shot.training_names(splits)
    for note in few_shot.notes:
        logger.warning("few_shot.%s=%s: %s", benchmark, root, note)
    folders = {pair.mask.rpartition("/")[0] for listed in by_class.values() for pair in listed}
    masks = frozenset(entry.path for path in folders for entry in few_shot.root.list(path))
    for class_id in sorted(by_class):
        pairs = PairsOfClass(benchmark, root, class_id)
        yield PairReader(few_shot, pairs, names[class_id], by_class[class_id], masks)


def reopen(pairs: PairsOfClass) -> PairReader:
    """Opens a reader that decodes but has no list, on a worker."""
    return PairReader(open_few_shot(pairs.benchmark, pairs.root), pairs)


def class_of(manifest: Manifest) -> str | None:
    """The word of the class whose pairs a manifest holds; None for any other manifest."""
    if not manifest.taxonomy.startswith(_TAXONOMY):
        return None
    return manifest.taxonomy.removeprefix(_TAXONOMY)


def without_fold(manifests: Mapping[str, Manifest], fold: int) -> dict[str, Manifest]:
    """The manifests of the classes that a test fold leaves for training.

    Raises:
        UserError: Some are not of a benchmark with such a fold.
    """
    kept = {}
    for name, manifest in manifests.items():
        match = re.fullmatch(r"(\w+)_(\d{3})", name)
        few_shot = FEW_SHOT_SETS.get(match[1].replace("_", "-")) if match else None
        if match is None or few_shot is None or not 0 <= fold < few_shot.num_folds:
            raise UserError(
                f"train.test_fold={fold}: {name} is not of a few-shot benchmark with such a fold "
                "(pascal-5i and coco-20i have 0 to 3, fss-1000 has 0): leave it out, or give the "
                "shards of one benchmark"
            )
        if int(match[2]) not in few_shot.test_ids(fold):
            kept[name] = manifest
    return kept

"""The three few-shot benchmarks that LSeg is scored on zero-shot, as HSNet lays them out."""

from pipeline.data.datasets.few_shot.base import Episode, FewShotSet
from pipeline.data.datasets.few_shot.coco import COCO20i
from pipeline.data.datasets.few_shot.fss import FSS1000
from pipeline.data.datasets.few_shot.pascal import PASCAL5i
from pipeline.errors import UserError
from pipeline.storage.open import open_storage

__all__ = ["FEW_SHOT_SETS", "Episode", "FewShotSet", "open_few_shot"]

FEW_SHOT_SETS: dict[str, type[FewShotSet]] = {cls.name: cls for cls in (PASCAL5i, COCO20i, FSS1000)}


def open_few_shot(name: str, root_uri: str, splits_uri: str = "") -> FewShotSet:
    """Opens a benchmark's data.

    Args:
        name: `pascal-5i`, `coco-20i` or `fss-1000`.
        root_uri: The folder that holds `VOC2012`, `COCO2014` or `FSS-1000`, or that folder itself.
        splits_uri: HSNet's `splits` folder, for lists that are not shipped; "" for none.

    Raises:
        UserError: The root does not look like that.
    """
    cls = FEW_SHOT_SETS[name]
    root = open_storage(root_uri)
    splits = open_storage(splits_uri) if splits_uri else None
    for base in ("", cls.folder):
        if cls.recognises(root, base):
            return cls(root, base, splits)
    raise UserError(
        f"roots.{name}={root_uri}: must hold {' and '.join(cls.needs)}, or a folder {cls.folder} "
        f"that does; it holds {', '.join(root.folders()[:8]) or 'no folders'}"
    )

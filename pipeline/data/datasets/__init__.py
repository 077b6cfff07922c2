"""One file a dataset: where its files lie below a root, and how its labels are stored."""

import posixpath

from pipeline.data.datasets.ade20k import ADE20K
from pipeline.data.datasets.base import SPLITS, LeftOut, Listing, Reader, Source, Split
from pipeline.data.datasets.bdd100k import BDD100K
from pipeline.data.datasets.cityscapes import Cityscapes
from pipeline.data.datasets.coco_panoptic import COCOPanoptic
from pipeline.data.datasets.idd import IDD
from pipeline.data.datasets.mapillary import Mapillary
from pipeline.data.datasets.pixels import BadSample
from pipeline.data.datasets.sunrgbd import SUNRGBD
from pipeline.data.storage import Storage, open_storage
from pipeline.data.taxonomy import require_dataset
from pipeline.errors import UserError

__all__ = [
    "READERS",
    "SPLITS",
    "BadSample",
    "LeftOut",
    "Listing",
    "Reader",
    "Source",
    "Split",
    "open_reader",
]

READERS: dict[str, type[Reader]] = {
    reader.name: reader
    for reader in (ADE20K, BDD100K, Cityscapes, COCOPanoptic, IDD, Mapillary, SUNRGBD)
}

_MAX_SUBFOLDERS = 50
"""A root with more folders than this is not searched for a dataset's folder."""


def open_reader(dataset: str, root_uri: str) -> Reader:
    """Opens a dataset's download.

    Args:
        dataset: One of `pipeline.data.taxonomy.DATASETS`.
        root_uri: The dataset's own folder; the one that holds it, if no other folder in there
            holds the same dataset; or one of the folders in it.

    Raises:
        UserError: The dataset is unknown; the root is missing, or is not this dataset's: the
            message says which one it looks like.
    """
    require_dataset(dataset)
    cls = READERS[dataset]
    root = open_storage(root_uri)
    bases = _find(cls, root)
    if len(bases) == 1:
        return cls(root, bases[0])
    where = f"roots.{dataset}={root_uri}"
    if bases:
        raise UserError(
            f"{where}: must hold the dataset once: give one of "
            + ", ".join(posixpath.join(root_uri, base) for base in bases)
        )
    parent_uri, _, last = root.uri.rpartition("/")
    if last in cls.inner_folders and parent_uri and not parent_uri.endswith("/"):
        parent = open_storage(parent_uri)
        if cls.recognises(parent):
            return cls(parent)
    raise UserError(f"{where}: {_why_not(cls, root)}")


def _find(cls: type[Reader], root: Storage) -> list[str]:
    """Returns the folders that look like a dataset's: the root itself, or folders in it."""
    if cls.recognises(root):
        return [""]
    folders = root.folders()
    if len(folders) > _MAX_SUBFOLDERS:
        return []
    return [folder for folder in folders if cls.recognises(root, folder)]


def _why_not(cls: type[Reader], root: Storage) -> str:
    if root.is_empty():
        return "must be the folder of a dataset's download: it does not exist or is empty"
    expected = f"must hold {cls.layout}"
    for other in READERS.values():
        if other is not cls and _find(other, root):
            return f"looks like {other.name}; a root of {cls.name} {expected}: give that folder"
    folders = root.folders()
    found = ", ".join(folders[:8]) + (", ..." if len(folders) > 8 else "") or "no folders"
    return f"{expected}: it holds {found}"

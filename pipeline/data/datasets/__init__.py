"""One file a dataset: where its files lie below a root, and how its labels are stored."""

import posixpath
from collections.abc import Iterator
from fnmatch import fnmatchcase

from pipeline.data.datasets.ade20k import ADE20K
from pipeline.data.datasets.base import Reader
from pipeline.data.datasets.bdd100k import BDD100K
from pipeline.data.datasets.cityscapes import Cityscapes
from pipeline.data.datasets.coco_panoptic import COCOPanoptic
from pipeline.data.datasets.idd import IDD
from pipeline.data.datasets.mapillary import Mapillary
from pipeline.data.datasets.misplaced import doubled, elsewhere
from pipeline.data.datasets.sunrgbd import SUNRGBD
from pipeline.data.taxonomy import require_dataset
from pipeline.errors import UserError
from pipeline.storage.archives.archive import SUFFIXES
from pipeline.storage.archives.packed import PackedStorage, open_packed
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

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
            holds the same dataset; one of the folders in it; or an archive. Official archives
            that lie packed in a folder are read as if they were unpacked there.

    Raises:
        UserError: The dataset is unknown; the root is missing, or is not this dataset's: the
            message says which one it looks like.
    """
    require_dataset(dataset)
    cls = READERS[dataset]
    where = f"roots.{dataset}={root_uri}"
    uri = root_uri.rstrip("/") or root_uri
    parent, _, last = uri.rpartition("/")
    if any(fnmatchcase(last, packing.pattern) for packing in cls.packings if not packing.whole):
        # Images without labels, or labels without images: the other archives lie beside it.
        uri = parent or "."
        parent, _, last = uri.rpartition("/")
    for root, bases in _searched(cls, uri):
        if len(bases) == 1:
            return cls(root, bases[0])
        if bases and {base.rpartition("/")[2] for base in bases} <= cls.parts:
            return cls(root, bases[0], more_bases=tuple(bases[1:]))
        if bases:
            raise UserError(
                f"{where}: must hold the dataset once: give one of "
                + ", ".join(posixpath.join(root_uri, base) for base in bases)
            )
    if last in cls.inner_folders and parent and not parent.endswith("/"):
        for root, bases in _searched(cls, parent):
            if "" in bases:
                return cls(root)
    raise UserError(f"{where}: {_why_not(cls, uri)}")


def _searched(cls: type[Reader], uri: str) -> Iterator[tuple[Storage, list[str]]]:
    """Yields ways to see a root, the likeliest first, each with the dataset's folders in it."""
    if uri.lower().endswith(SUFFIXES):
        root = open_packed(uri, ())
        yield root, _find(cls, root)
        if isinstance(root, PackedStorage):
            return
    plain = open_storage(uri)
    # Beside a dataset that is unpacked, the archive of all of it has nothing to add.
    unpacked = cls.recognises(plain)
    packings = tuple(packing for packing in cls.packings if not (unpacked and packing.whole))
    root = open_packed(uri, packings)
    bases = _find(cls, root)
    if len(bases) != 1 or bases == [""] or isinstance(root, PackedStorage):
        yield root, bases
    folders = bases or root.folders()
    for folder in folders if len(folders) <= _MAX_SUBFOLDERS else ():
        # The archives of a folder in the root, such as the one that is called after the dataset.
        packings = tuple(p for p in cls.packings if not (folder in bases and p.whole))
        root = open_packed(uri, packings, folder)
        if isinstance(root, PackedStorage) or folder in bases:
            yield root, _find(cls, root, folder)
    root = open_packed(uri, (), any_archive=True)
    if isinstance(root, PackedStorage):
        yield root, _find(cls, root)


def _find(cls: type[Reader], root: Storage, folder: str = "") -> list[str]:
    """Returns the folders that look like a dataset's: a folder itself, or those in it."""
    if cls.recognises(root, folder):
        return [folder]
    names = root.folders(folder)
    if len(names) > _MAX_SUBFOLDERS:
        return []
    below = [posixpath.join(folder, name) for name in names]
    return [path for path in below if cls.recognises(root, path)]


def _why_not(cls: type[Reader], uri: str) -> str:
    root = open_packed(uri, cls.packings)
    if root.is_empty():
        if isinstance(root, PackedStorage) and root.refused:
            name, reason = root.refused[0]
            return f"holds nothing that can be read: {name} {reason}: pack or download it anew"
        return "must be the folder of a dataset's download: it does not exist or is empty"
    expected = f"must hold {cls.layout}"
    for other in READERS.values():
        if other is not cls and _find(other, root):
            return f"looks like {other.name}; a root of {cls.name} {expected}: give that folder"
    folders = root.folders()
    found = ", ".join(folders[:8]) + (", ..." if len(folders) > 8 else "") or "no folders"
    if remedy := doubled(root, "", cls.inner_folders):
        return f"{expected}: {remedy}"
    if place := elsewhere(cls.recognises, uri):
        return f"{expected}: it holds {found}: give {place}"
    return f"{expected}: it holds {found}"

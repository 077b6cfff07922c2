"""A dataset of the user's own: folders of images and masks, and a table of its classes.

    images/**/<name>.jpg (or .jpeg .png .webp .bmp .tif)
    masks/**/<name>.png        8-bit grey or palette PNGs of class ids
    classes.csv                id,name and, if wanted, universal

Where `images` holds the folders `train` or `val`, they are the splits; else a share of the images,
chosen by a hash of their names, is for validation. The column `universal` names the universal class
of a class; empty, a class of the same name is looked for, and one that is not there extends the
taxonomy by its own name; "-" leaves the pixels unlabelled, as 255 does. A mask with any other id
that the table lacks is a bad sample.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pipeline.data.datasets.base import SPLITS, Listing, Reader, Split, has_folders, pair, safe_key
from pipeline.data.taxonomy import DATASETS, IGNORE, VARIANTS, universal
from pipeline.data.taxonomy.labelling import OwnClass
from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_IGNORED = "-"


@dataclass(frozen=True, kw_only=True)
class OwnDataset:
    """A dataset of your own: images, masks and a table of classes."""

    root: str
    """Folder that holds the images, the masks and the table: a local directory or `s3://`."""
    images: str = "images"
    """Folder of the images, in `root`."""
    masks: str = "masks"
    """Folder of the masks, in `root`; a mask is named as its image."""
    classes: str = "classes.csv"
    """The table of classes, in `root`: columns id, name, universal; commas or tabs."""
    mask_suffix: str = ""
    """Ending of the masks' names, before `.png`, that the images' names lack; such as `_mask`."""
    val_fraction: float = 0.1
    """Share of the images for validation where there are no folders `train` and `val`."""

    def __post_init__(self) -> None:
        if not self.root.strip():
            raise UserError("own.NAME.root: is empty; give the folder with the images and masks")
        if not 0 <= self.val_fraction <= 1:
            raise UserError(f"own.NAME.val_fraction={self.val_fraction}: must be between 0 and 1")


def check_own_name(name: str) -> None:
    """Checks the name of a dataset of the user's, which names folders and shards.

    Raises:
        UserError: It cannot, or is that of a known dataset.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise UserError(
            f"own.{name}: must be lower-case letters, digits and '_', beginning with a letter"
        )
    if name in DATASETS or name in VARIANTS:
        raise UserError(f"own.{name}: is the name of a known dataset: choose another")


class OwnReader(Reader):
    """Reads a dataset of the user's own."""

    layout = "images/, masks/ and classes.csv"
    inner_folders: ClassVar = ()

    def __init__(self, name: str, spec: OwnDataset, root: Storage) -> None:
        """Reads the table of classes.

        Raises:
            UserError: It is missing or damaged.
        """
        self.name = name  # type: ignore[misc]
        self.spec = spec
        self.classes = _read_classes(root, spec.classes, f"own.{name}.classes")
        super().__init__(root)

    def _native_ids(self) -> Iterable[int]:
        return (entry.native_id for entry in self.classes)

    def _listing(self, split: Split) -> Listing:
        spec = self.spec
        divided = any(has_folders(self.root, spec.images, folder) for folder in SPLITS)
        below = f"/{split}" if divided else ""
        images = self._files(spec.images + below, _IMAGES)
        labels = self._files(spec.masks + below, f"{spec.mask_suffix}.png")
        if not divided:
            images = {name: path for name, path in images.items() if self._is_in(name, split)}
            labels = {name: path for name, path in labels.items() if self._is_in(name, split)}
        return pair(images, labels, lambda name: safe_key(*name.split("/")))

    def _is_in(self, name: str, split: Split) -> bool:
        digest = hashlib.sha256(name.encode()).digest()
        is_val = int.from_bytes(digest[:4], "big") < self.spec.val_fraction * 2**32
        return is_val == (split == "val")


def open_own(name: str, spec: OwnDataset) -> OwnReader:
    """Opens a dataset of the user's.

    Raises:
        UserError: Its folders or its table of classes are missing or damaged.
    """
    root = open_storage(spec.root)
    for key in ("images", "masks"):
        folder = getattr(spec, key)
        if not has_folders(root, "", folder):
            raise UserError(
                f"own.{name}.{key}={folder}: there is no such folder in {spec.root}; it holds "
                f"{', '.join(root.folders()[:8]) or 'no folders'}"
            )
    return OwnReader(name, spec, root)


def _read_classes(root: Storage, path: str, key: str) -> tuple[OwnClass, ...]:
    where = f"{key}={root.uri}/{path}"
    try:
        text = root.read(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{where}: no such file: write a table with the columns id,name,universal"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: must be text in UTF-8") from None
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    columns = set(rows.fieldnames or ())
    if not {"id", "name"} <= columns:
        raise UserError(f"{where}: its first line must name the columns id and name")
    found: dict[int, OwnClass] = {}
    for row in rows:
        line = f"{where}: line {rows.line_num}"
        number, name = (row["id"] or "").strip(), (row["name"] or "").strip()
        if not number.isdigit() or int(number) >= IGNORE:
            raise UserError(f"{line}: id={number!r}: must be a whole number from 0 to 254")
        if not name:
            raise UserError(f"{line}: has no name")
        if int(number) in found:
            raise UserError(f"{line}: id={number}: comes twice")
        target = _target(name, (row.get("universal") or "").strip(), line)
        found[int(number)] = OwnClass(int(number), name, target)
    if not any(entry.target is not None for entry in found.values()):
        raise UserError(f"{where}: names no class")
    return tuple(found[number] for number in sorted(found))


def _target(name: str, wanted: str, where: str) -> str | None:
    """The universal class, a new one, or None for no label."""
    known = universal().classes
    if wanted == _IGNORED:
        return None
    if not wanted:
        plain = re.sub(r"[\s\-]+", "_", name.lower())
        return next((n for n in known if n.replace(" ", "_") == plain), name)
    try:
        universal().id_of(wanted)
    except UserError as error:
        raise UserError(f"{where}: universal={wanted!r}: {error}; or leave it empty") from None
    return wanted

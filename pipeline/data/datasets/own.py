"""A dataset of the user's own: folders of images and masks, and a table of its classes.

    images/**/<name>.jpg (or .jpeg .png .webp .bmp .tif, ...)
    masks/**/<name>.png        8-bit grey or palette PNGs of class ids; or <name>.mat, MATLAB files
                               with an array of them in a variable that is named
    classes.csv                id,name and, if wanted, universal

Suffixes may have any case. Where `images` holds folders such as `train`, `training`, `val`, `valid`
or `validation`, they are the splits; else a share of the images, chosen by a hash of their names,
is for validation. A folder `test` (or `testing`) beside them is a split too where there are masks
for it; images without any are not read, which is noted. The column `universal`
names the universal class of a class; empty, a class of the same name is looked for, and one that is
not there extends the taxonomy by its own name; "-" leaves the pixels unlabelled, as 255 does. A
mask with any other id that the table lacks is a bad sample.
"""

import hashlib
import posixpath
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.data.datasets.base import (
    ALL_SPLITS,
    Listing,
    Reader,
    Source,
    Split,
    has_folders,
    pair,
    safe_key,
)
from pipeline.data.datasets.found import LeftOut, Role, looks_like_an_image
from pipeline.data.datasets.matlab import read_label_array
from pipeline.data.datasets.misplaced import doubled, elsewhere
from pipeline.data.datasets.own_classes import read_classes
from pipeline.data.datasets.own_splits import deeper_folders, note_on_depth, splits_in
from pipeline.data.pixels.formats import SUFFIXES
from pipeline.data.taxonomy import DATASETS, IGNORE, VARIANTS
from pipeline.errors import UserError
from pipeline.storage.base import Storage
from pipeline.storage.names import is_hidden
from pipeline.storage.open import open_storage

_IMAGES = (".jpg", ".png", *sorted(SUFFIXES - {".jpg", ".png"}))


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
    mask_variable: str = ""
    """Variable with the label array where the masks are MATLAB files (`.mat`), such as
    `groundtruth`; empty: they are PNGs."""
    val_fraction: float = 0.1
    """Share of the images for validation where there are no folders `train` and `val`."""

    def __post_init__(self) -> None:
        if not self.root.strip():
            raise UserError("own.NAME.root: is empty; give the folder with the images and masks")
        if not 0 <= self.val_fraction <= 1:
            raise UserError(f"own.NAME.val_fraction={self.val_fraction}: must be between 0 and 1")
        if self.mask_variable and not re.fullmatch(r"[A-Za-z]\w{0,62}", self.mask_variable):
            raise UserError(
                f"own.NAME.mask_variable={self.mask_variable[:80]!r}: must be the name of a "
                "variable of MATLAB: letters, digits and '_', beginning with a letter"
            )

    @property
    def mask_end(self) -> str:
        """What the names of masks end in."""
        return f"{self.mask_suffix}{'.mat' if self.mask_variable else '.png'}"


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
    unread_is_lost: ClassVar[bool] = True
    inner_folders: ClassVar = ()

    def __init__(self, name: str, spec: OwnDataset, root: Storage) -> None:
        """Reads the table of classes.

        Raises:
            UserError: It is missing or damaged.
        """
        self.name = name  # type: ignore[misc]
        self.spec = spec
        self.classes = read_classes(root, spec.classes, f"own.{name}.classes")
        super().__init__(root)
        folders = (splits_in(root.folders(folder)) for folder in (spec.images, spec.masks))
        if all("test" in found for found in folders):
            self.splits = ALL_SPLITS  # type: ignore[misc]

    def _native_ids(self) -> Iterable[int]:
        return (entry.native_id for entry in self.classes)

    def _listing(self, split: Split) -> Listing:
        spec = self.spec
        self._folders = folders = splits_in(self.root.folders(spec.images))
        self._divided = bool(folders)
        images = self._of_split("image", split, bool(folders))
        labels = self._of_split("label", split, bool(folders))
        inner = f"{spec.masks}/"
        if inner.startswith(f"{spec.images}/") and inner != f"{spec.images}/":
            images = {name: path for name, path in images.items() if not path.startswith(inner)}
        elif spec.masks == spec.images and spec.mask_suffix:
            # The masks lie among the images, and may have their suffix too.
            end = spec.mask_end.lower()
            images = {name: path for name, path in images.items() if not path.lower().endswith(end)}
        listing = pair(images, labels, lambda name: safe_key(*name.split("/")))
        if spec.mask_variable:
            # So that shards made of another variable are those of other sources.
            extra = {"variable": spec.mask_variable}
            sources = tuple(replace(source, extra=extra) for source in listing.sources)
            listing = replace(listing, sources=sources)
        strange = sorted(set(self._found.strange))
        notes = [_note_on(strange)] if strange and (folders or split == "train") else []
        if not folders:
            notes += [note_on_depth(names) for names in [deeper_folders(images.values())] if names]
        if not folders or split != "train":
            return Listing(listing.sources, listing.left_out, tuple(notes))
        left_out, more = self._beside(folders)
        return Listing(listing.sources, (*listing.left_out, *left_out), (*notes, *more))

    def _of_split(self, role: Role, split: Split, divided: bool) -> dict[str, str]:
        """Name -> path of the images or masks of a split, as `_files` returns them."""
        spec = self.spec
        folder = spec.images if role == "image" else spec.masks
        below = ""
        if divided:
            there = self._folders if role == "image" else splits_in(self.root.folders(folder), True)
            names = there.get(split, [])
            if len(names) > 1:
                raise UserError(
                    f"own.{self.name}: {folder} holds {' and '.join(names)}, which are all names "
                    f"of the split {split}: keep one of them"
                )
            below = f"/{names[0] if names else split}"
        suffixes = _IMAGES if role == "image" else (spec.mask_end,)
        also = _IMAGES if role == "label" and spec.masks == spec.images else ()
        files = self._files(folder + below, suffixes, role=role, also=also)
        if divided:
            return files
        return {name: path for name, path in files.items() if self._is_in(name, split)}

    def _beside(self, folders: dict[str, list[str]]) -> tuple[list[LeftOut], list[str]]:
        """Images beside the folders of the splits: those of no split, and what is said of tests."""
        used = {name for split in self.splits for name in folders.get(split, ())}
        num_test = 0
        left_out = []
        for entry in self.root.list(self.spec.images):
            inner = entry.path.removeprefix(f"{self.spec.images}/")
            top = inner.partition("/")[0] if "/" in inner else ""
            if top in used or is_hidden(inner) or not looks_like_an_image(inner):
                continue
            if top in folders.get("test", ()):
                num_test += 1
                continue
            reason = f"lies in no folder of a split, as {', '.join(sorted(used))} here"
            left_out.append(LeftOut(entry.path, reason))
        if not num_test:
            return left_out, []
        names = ", ".join(f"{self.spec.images}/{name}" for name in folders["test"])
        advice = "" if "val" in folders else ": rename it to val to validate on it"
        note = (
            f"{names}: {num_test} images are not read, since {self.spec.masks} holds no folder "
            f"test{advice}"
        )
        return left_out, [note]

    def empty_hint(self, split: Split) -> str:
        """What a user can do where a split has no sample at all."""
        key = f"own.{self.name}"
        if remedy := doubled(self.root, "", (self.spec.images, self.spec.masks)):
            return remedy
        images, masks = self.spec.images, self.spec.masks
        of_masks = splits_in(self.root.folders(masks))
        if not self.spec.mask_variable and self._has_mats():
            return (
                f"{masks} holds MATLAB files: name the variable with the label array by "
                f"{key}.mask_variable"
            )
        if folders := splits_in(self.root.folders(images)):
            there = ", ".join(name for names in folders.values() for name in names)
            if split not in folders:
                return (
                    f"{images} holds the folders {there}: add one called {split}, or set splits to "
                    "those that it has"
                )
            if not of_masks:
                return (
                    f"{images} holds the folders {there}, and {masks} none of such names: divide "
                    "the masks as the images"
                )
        elif of_masks:
            there = ", ".join(name for names in of_masks.values() for name in names)
            return (
                f"{masks} holds the folders {there}, and {images} none of such names: divide the "
                "images as the masks"
            )
        if self._found.nothing_fits():
            return (
                f"no mask is called as its image: {masks}/NAME{self.spec.mask_end} belongs "
                f"to {images}/NAME.jpg: rename them, or set {key}.mask_suffix"
            )
        if split == "test":
            return (
                f"put images and masks for it into folders {self.spec.images}/test and "
                f"{self.spec.masks}/test"
            )
        share = self.spec.val_fraction
        return (
            f"{key}.val_fraction={share:g} chooses by the images' names, and chose none for "
            f"{split}: {'raise' if split == 'val' else 'lower'} it, or put the images and masks "
            "into folders train and val"
        )

    def _has_mats(self) -> bool:
        return any(e.path.lower().endswith(".mat") for e in self.root.list(self.spec.masks))

    def _decode(self, data: bytes, source: Source) -> np.ndarray:
        if not self.spec.mask_variable:
            return super()._decode(data, source)
        # The process that reads MATLAB files takes a path, and the mask may lie in a bucket.
        with tempfile.NamedTemporaryFile(suffix=".mat") as file:
            file.write(data)
            file.flush()
            return read_label_array(Path(file.name), self.spec.mask_variable, source.label)

    def remarks(self, native_pixels: np.ndarray) -> list[str]:
        """What is odd about the ids that all masks of a split have together; see `Reader`."""
        kept = [entry for entry in self.classes if entry.target is not None]
        unseen = [entry for entry in kept if not native_pixels[entry.native_id]]
        seen = np.flatnonzero(native_pixels).tolist()
        if not unseen or not seen:
            return []
        shown = ", ".join(f"{entry.name} ({entry.native_id})" for entry in unseen[:10])
        more = f" and {len(unseen) - 10} more" if len(unseen) > 10 else ""
        remarks = [f"classes without a pixel in any mask: {shown}{more}"]
        if IGNORE in seen and len(seen) != 2:
            unread = native_pixels[IGNORE] / native_pixels.sum()
            remarks.append(
                f"{unread:.0%} of the pixels of the masks are 255, which is read as unlabelled: "
                f"where it means one of these classes, such as {unseen[0].name}, write its id "
                f"({unseen[0].native_id}) in its place"
            )
        if IGNORE in seen and len(seen) == 2:
            remarks.append(
                f"the masks hold nothing but {seen[0]} and 255, and 255 is read as unlabelled: "
                f"where it means {unseen[0].name}, write {unseen[0].native_id} in its place"
            )
        return remarks

    def _counts_in(self, path: str, split: Split) -> bool:
        # Without folders of splits both listings meet every file, and one alone may count it.
        return self._divided or self._is_in(posixpath.splitext(path)[0], split)

    def _is_in(self, name: str, split: Split) -> bool:
        digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
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
            there = ", ".join(root.folders()[:8]) or "no folders"
            apart = [f for f in root.folders() if has_folders(root, f, spec.images, spec.masks)]
            if len(apart) > 1:
                first = apart[0]
                raise UserError(
                    f"own.{name}.root={spec.root}: holds {', '.join(apart[:8])}, each with "
                    f"{spec.images} and {spec.masks}: move {first}/{spec.images} to "
                    f"{spec.images}/{first} and {first}/{spec.masks} to {spec.masks}/{first}, and "
                    "so on, or give each as a dataset of its own"
                )
            place = elsewhere(
                lambda r, base: has_folders(r, base, spec.images, spec.masks), root.uri
            )
            raise UserError(
                f"own.{name}.{key}={folder}: there is no such folder in {spec.root}; it holds "
                f"{there}: " + (f"set root to {place}" if place else "correct the root or the name")
            )
    return OwnReader(name, spec, root)


def _note_on(strange: Sequence[str]) -> str:
    counts = Counter(posixpath.splitext(name)[1] or "without a suffix" for name in strange)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())[:8])
    names = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
    return f"{len(strange)} files are not read, of which the names say no format ({kinds}): {names}"

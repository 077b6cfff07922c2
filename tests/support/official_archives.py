"""Packs dataset folders into archives with their official names and inner folders."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

# For each dataset its archives: name -> (folders of the root that it holds, their top folder).
OFFICIAL: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {
    "ade20k": {"ADEChallengeData2016.zip": (("images", "annotations"), "ADEChallengeData2016/")},
    "bdd100k": {
        "bdd100k_images_10k.zip": (("images",), "bdd100k/"),
        "bdd100k_sem_seg_labels_trainval.zip": (("labels",), "bdd100k/"),
    },
    "cityscapes": {
        "leftImg8bit_trainvaltest.zip": (("leftImg8bit",), ""),
        "gtFine_trainvaltest.zip": (("gtFine",), ""),
    },
    "idd": {"idd-segmentation.tar.gz": (("leftImg8bit", "gtFine"), "IDD_Segmentation/")},
    "mapillary": {
        "mapillary-vistas-dataset_public_v1.2.zip": (("training", "validation"), ""),
    },
    "sunrgbd": {"sun_rgbd.tgz": (("image", "label37"), "sun_rgbd/")},
}


def pack_official(dataset: str, root: Path, out: Path) -> None:
    """Packs a root into the archives of the official download, which then lie in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    if dataset == "coco_panoptic":
        pack_coco(root, out)
        return
    for name, (folders, top) in OFFICIAL[dataset].items():
        files = {
            top + path.relative_to(root).as_posix(): path.read_bytes()
            for folder in folders
            for path in sorted((root / folder).rglob("*"))
            if path.is_file()
        }
        write_archive(out / name, files)


def pack_coco(root: Path, out: Path) -> None:
    """As COCO gives it away: the PNGs in zips within the zip of the annotations."""
    annotations = {}
    for split in ("train", "val"):
        write_archive(out / f"{split}2017.zip", below(root, f"{split}2017"))
        inner = below(root / "annotations", f"panoptic_{split}2017")
        buffer = io.BytesIO()
        write_zip(buffer, {**inner, f"__MACOSX/panoptic_{split}2017/._x.png": b"resource fork"})
        annotations[f"annotations/panoptic_{split}2017.zip"] = buffer.getvalue()
        index = root / "annotations" / f"panoptic_{split}2017.json"
        annotations[f"annotations/panoptic_{split}2017.json"] = index.read_bytes()
    write_archive(out / "panoptic_annotations_trainval2017.zip", annotations)


def below(root: Path, folder: str) -> dict[str, bytes]:
    paths = sorted(path for path in (root / folder).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    """Writes a .zip, .tar, .tar.gz or .tgz by the end of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with path.open("wb") as file:
            write_zip(file, files)
        return
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}" if path.suffix == ".tar" else name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_zip(file, files: dict[str, bytes]) -> None:
    """Stores every other member, and deflates the rest."""
    with zipfile.ZipFile(file, "w") as archive:
        for number, (name, data) in enumerate(files.items()):
            method = zipfile.ZIP_DEFLATED if number % 2 == 0 else zipfile.ZIP_STORED
            archive.writestr(name, data, compress_type=method)


def upload_tree(root: Path, uri: str) -> None:
    """Copies a local folder to a storage."""
    from pipeline.storage.open import open_storage

    storage = open_storage(uri)
    for path in root.rglob("*"):
        if path.is_file():
            storage.upload(path.relative_to(root).as_posix(), path)


def move_into(root: Path, folder: str) -> None:
    """Moves everything in a folder into one below it."""
    inner = root / folder
    items = list(root.iterdir())
    inner.mkdir()
    for item in items:
        shutil.move(item, inner / item.name)

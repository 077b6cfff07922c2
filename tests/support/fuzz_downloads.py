"""Readers of downloads, of a user's own datasets and of archives, as targets of the fuzzer."""

import gzip
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import SPLITS, Reader
from pipeline.data.datasets.matlab import LabelMats, read_strings
from pipeline.data.datasets.own import OwnDataset, open_own
from pipeline.data.pixels.checks import BadSample
from pipeline.demo.layouts import write_mini_seven
from pipeline.errors import UserError
from pipeline.storage.archives.archive import Archive
from pipeline.storage.archives.blob import Blob
from pipeline.storage.base import DamagedFile
from pipeline.storage.local import LocalStorage
from tests.support.archive_mutators import tar_headers, tarred, zip_directory, zipped
from tests.support.fuzz_pictures import jpegs, pngs
from tests.support.fuzz_target import AWARE, MIB, Target, one_changed
from tests.support.mini_shards import paint_vectors
from tests.support.real_samples import real_files
from tests.support.text_mutators import table_cells


def _read_root(open_it: Callable[[], Reader]) -> None:
    """What the conversion reads of a download: its listing, three labels, and their segments."""
    reader = open_it()
    for split in SPLITS:
        for source in reader.listing(split).sources[:3]:
            with suppress(BadSample):
                reader.native_label(source)
            # ADE20K's segments lie in a file of its full release, which is not damaged here.
            release = f"{reader.root.uri}/{source.label}"
            given = replace(source, extra={**source.extra, "full_release": release})
            with suppress(BadSample):
                reader.segment_masks(given, {0, 1, 2})


def roots(folder: Path) -> list[Target]:
    """Each dataset's reader on a root of which one file of each suffix is damaged."""
    made = write_mini_seven(folder / "raw", paint_vectors(), 5, 2, 1)
    targets = []
    for name, root in made.items():
        suffixes: dict[str, Path] = {}
        for path in sorted(root.rglob("*")):
            if path.is_file():
                suffixes.setdefault(path.suffix, path)
        for suffix, path in suffixes.items():
            if suffix == ".jpg" or (suffix == ".png" and "leftImg8bit" in str(path)):
                continue  # Photos are no matter of the readers.
            files = [other.read_bytes() for other in sorted(root.rglob(f"*{suffix}"))[:8]]
            files += real_files(f"samples/{name}*/**/*{suffix}", largest=1 << 14)
            own = path.read_bytes()

            def read(data: bytes, name=name, root=root, path=path, own=own) -> None:
                path.write_bytes(data)
                try:
                    _read_root(lambda: open_reader(name, str(root)))
                finally:
                    path.write_bytes(own)

            aware = AWARE.get(suffix, ())
            targets.append(
                Target(f"{name} {suffix}", files, read, (UserError,), aware, memory_mib=1024)
            )
    return targets


def own(folder: Path) -> list[Target]:
    """A user's own dataset: the table of its classes, and a mask."""
    root = folder / "shop"
    for number in range(4):
        for part, data in (("images", jpegs()[0]), ("masks", pngs()[1])):
            path = root / part / f"{number}{'.jpg' if part == 'images' else '.png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    rows = ["id,name,universal", "0,background,-", *(f"{i},thing {i}," for i in range(1, 7))]
    table = "\n".join([*rows, ""]).encode()
    (root / "classes.csv").write_bytes(table)
    spec = OwnDataset(root=str(root))

    def read(data: bytes) -> None:
        (root / "classes.csv").write_bytes(data)
        _read_root(lambda: open_own("shop", spec))

    files = [table, *real_files("real/*/classes.csv")]
    return [Target("own classes.csv", files, read, (UserError,), [table_cells])]


def mat(folder: Path) -> list[Target]:
    """MATLAB files of both formats."""
    names, cells = folder / "names.mat", folder / "cells.mat"
    scipy.io.savemat(names, {"alltrain": np.array(["a/b", "c/d"], dtype=object)})
    with h5py.File(cells, "w") as file:
        texts = [np.frombuffer(t.encode("utf-16-le"), np.uint16) for t in ("a/b", "c/d")]
        stored = [file.create_dataset(f"#refs#/{i}", data=t) for i, t in enumerate(texts)]
        labels = [np.full((8, 9), i, np.uint8) for i in range(2)]
        stored_labels = [file.create_dataset(f"#refs#/l{i}", data=v) for i, v in enumerate(labels)]
        for where, datasets in (("alltrain", stored), ("S/seglabel", stored_labels)):
            column = np.array([d.ref for d in datasets], h5py.ref_dtype).reshape(-1, 1)
            file.create_dataset(where, data=column, dtype=h5py.ref_dtype)
    path = folder / "changed.mat"

    def read() -> None:
        with suppress(UserError):
            read_strings(path, "alltrain")
        with suppress(UserError, BadSample):
            LabelMats(path, "S", "seglabel").read(1)

    targets = (("mat of scipy", names), ("mat of HDF5", cells))
    return [
        Target(name, [file.read_bytes()], one_changed(path, read), (), memory_mib=512)
        for name, file in targets
    ]


@contextmanager
def _own_copies(folder: Path) -> Iterator[None]:
    """A folder for node-local copies that goes with them.

    Each is looked through when a copy is made: those of thousands of archives would take all time.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=folder) as tempfile.tempdir:
        try:
            yield
        finally:
            tempfile.tempdir = before


def archive(folder: Path) -> list[Target]:
    """Zips and tars, of which every member is read."""
    content = {"a/1.txt": b"one" * 300, "a/b/2.png": pngs()[0], "c.json": b'{"a": [1, 2]}'}
    tar = tarred(content)
    files = {".zip": [zipped(content)], ".tar": [tar], ".tar.gz": [gzip.compress(tar)]}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)
    files[".zip"].append(buffer.getvalue())
    aware = {".zip": [zip_directory], ".tar": [tar_headers], ".tar.gz": []}

    def reader(suffix: str) -> Callable[[], None]:
        def read() -> None:
            with _own_copies(folder):
                storage = LocalStorage(folder)
                found = Archive(Blob.of(storage, f"changed{suffix}"))
                for name in found.names[:20]:
                    with suppress(DamagedFile):
                        if found.size(name) < 64 * MIB:
                            found.read(name)

        return read

    return [
        Target(
            f"archive {suffix}",
            files[suffix],
            one_changed(folder / f"changed{suffix}", reader(suffix)),
            (UserError,),
            aware[suffix],
        )
        for suffix in files
    ]

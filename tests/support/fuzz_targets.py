"""Every reader of files that come from elsewhere: samples to damage, and what it may raise on them.

A target returns or raises one of the exceptions that its docstring promises. Anything else, and
what takes too long or too much memory, is a defect. What a target finds inconsistent is an
AssertionError.
"""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import scipy.io
import torch
from PIL import Image

from model.checkpoint import LABELS, TEXTS, WEIGHTS, save_checkpoint
from model.errors import ModelError
from model.lseg import LSeg, build_lseg
from model.official import export_official, import_official
from pipeline.checkpoints.provenance import read_provenance
from pipeline.data.datasets import open_reader
from pipeline.data.datasets.base import SPLITS, Reader
from pipeline.data.datasets.matlab import LabelMats, read_strings
from pipeline.data.datasets.own import OwnDataset, open_own
from pipeline.data.pixels import official
from pipeline.data.pixels.checks import BadSample
from pipeline.data.pixels.decode import decode_jpeg, decode_label
from pipeline.data.pixels.encode import encode_label, keep_jpeg
from pipeline.data.shards.corpus import Corpus, SampleReader
from pipeline.data.shards.format import (
    EncodedSample,
    Manifest,
    SampleRecord,
    ShardError,
    ShardWriter,
    parse_sample,
)
from pipeline.data.shards.union import union_of
from pipeline.data.taxonomy import universal
from pipeline.demo.layouts import write_mini_seven
from pipeline.errors import UserError
from pipeline.inference.config import PredictConfig, read_labels
from pipeline.inference.photos import decode_photo
from pipeline.retraining.state import Attempt, StateFile
from pipeline.storage.archives.archive import Archive
from pipeline.storage.archives.blob import Blob
from pipeline.storage.base import DamagedFile
from pipeline.storage.lease import _lives, _name, _parse
from pipeline.storage.local import LocalStorage
from pipeline.sweep import results
from pipeline.tracking.records import (
    Record,
    RunIdentity,
    from_line,
    identity_bytes,
    identity_from,
    to_line,
)
from tests.support import mutators as m
from tests.support.mini_shards import paint_vectors, tiny_model
from tests.support.tiny_roots import noise

MIB = 1 << 20


@dataclass(frozen=True)
class Target:
    """A reader, files for it, and what it may cost."""

    name: str
    files: Sequence[bytes]
    read: Callable[[bytes], object]
    may_raise: tuple[type[Exception], ...]
    aware: Sequence[m.Mutator] = ()
    cpu_s: float = 5.0
    """CPU time of one file, far above what one takes."""
    memory_mib: int = 256
    """Growth of the process during one file."""
    may_crash: bool = False
    """Whether a library's own C code is known to crash on some damage, which is only counted."""


Build = Callable[[Path], list[Target]]
"""Makes the targets of a kind, whose files may lie in the folder."""


def pillow(image: np.ndarray, mode: str, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def jpegs() -> list[bytes]:
    """Baseline and progressive, with several samplings, grey, CMYK, with EXIF and restarts."""
    image = noise(48, 64, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    options: list[dict[str, Any]] = [{}, {"subsampling": 0}, {"subsampling": 1}]
    options += [{"progressive": True}, {"exif": exif}, {"optimize": True}]
    found = [pillow(image, "RGB", "JPEG", quality=80, **given) for given in options]
    found += [pillow(image, "L", "JPEG"), pillow(image, "CMYK", "JPEG")]
    restarts = [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    return [*found, cv2.imencode(".jpg", image, restarts)[1].tobytes()]


def pngs() -> list[bytes]:
    """Labels as this project and others write them, colours, 16 bits, interlaced by no one."""
    label = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64) % 7
    grey = label.astype(np.uint8)
    found = [encode_label(grey), cv2.imencode(".png", grey)[1].tobytes()]
    found += [cv2.imencode(".png", (label * 999).astype(np.uint16))[1].tobytes()]
    found += [pillow(grey, mode, "PNG") for mode in ("P", "1", "LA")]
    return [*found, pillow(noise(48, 64, 2), "RGB", "PNG"), pillow(noise(48, 64, 2), "RGBA", "PNG")]


def jpeg(folder: Path) -> list[Target]:
    """Photos of stored samples, as training reads them, and what the conversion keeps as it is."""

    def stored(data: bytes) -> None:
        for shrink in (1, 4):
            image = decode_jpeg(data, (48, 64), shrink)
            assert image.dtype == np.uint8
            assert image.shape[2] == 3

    def kept(data: bytes) -> None:
        found = keep_jpeg(data, 1080)
        if found is None:
            return
        try:
            decode_jpeg(found[0], found[1])
        except BadSample as error:
            raise AssertionError(f"kept, but training cannot read it: {error}") from error

    given = (jpegs(), [m.jpeg_segments])
    return [
        Target("stored jpeg", given[0], stored, (BadSample,), given[1], memory_mib=1024),
        Target("kept jpeg", given[0], kept, (BadSample,), given[1], memory_mib=1024),
    ]


def photo(folder: Path) -> list[Target]:
    """Photos of any format, as predict, the service and the conversion read them."""
    image = noise(40, 50, 3)
    others = [pillow(image, "RGB", name) for name in ("WEBP", "TIFF", "BMP", "PPM", "GIF")]
    others += [pillow(image, "P", "GIF"), pillow(image, "L", "TIFF", compression="tiff_lzw")]
    others += [pillow(image, "RGB", "TIFF", compression="jpeg"), pillow(image, "RGB", "MPO")]

    def read(data: bytes) -> None:
        pixels = decode_photo(data)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.flags.c_contiguous

    return [
        Target("photo", jpegs(), read, (BadSample,), [m.jpeg_segments], memory_mib=1024),
        Target("photo png", pngs(), read, (BadSample,), [m.png_chunks], memory_mib=1024),
        Target("photo other", others, read, (BadSample,), memory_mib=1024),
    ]


def label(folder: Path) -> list[Target]:
    """Labels of shards and of the official downloads."""

    def read(data: bytes) -> None:
        found = decode_label(data)
        assert found.ndim == 2
        assert found.dtype == np.uint8

    def index(data: bytes) -> None:
        for decode in (
            lambda: official.decode_index_png(data, "x.png", ("L", "P")),
            lambda: official.decode_rgb_png(data, "x.png"),
            lambda: official.decode_16bit_png(data, "x.png"),
        ):
            with suppress(BadSample):
                assert decode().ndim in (2, 3)

    return [
        Target("stored label", pngs(), read, (BadSample,), [m.png_chunks], memory_mib=1024),
        Target("official label", pngs(), index, (), [m.png_chunks], memory_mib=2048),
    ]


def write_shard(folder: Path) -> Manifest:
    """A small shard and its manifest below a folder."""
    classes, storage = universal(), LocalStorage(folder)
    rng = np.random.default_rng(0)
    with ShardWriter(storage, "mini", "train", 0) as writer:
        for number in range(3):
            ids = rng.integers(0, 190, (24, 32), np.uint8)
            jpeg = cv2.imencode(".jpg", noise(24, 32, number))[1].tobytes()
            meta = {"dataset": "mini", "source": f"{number}.jpg", "size": [24, 32]}
            png = encode_label(ids)
            writer.write(
                EncodedSample(
                    f"s{number}", jpeg, png, meta, png if number else None, height=24, width=32
                )
            )
        record = writer.finish()
    counts = (1,) * len(classes.classes)
    made = Manifest(
        2, "mini", "train", classes.name, classes.fingerprint, "0" * 16, {"short_side_px": 1080},
        (record,), counts, (("x.jpg", "no label"),), ("a note",),
    )  # fmt: skip
    storage.write("mini/train/manifest.json", made.to_json().encode())
    return made


def manifest(folder: Path) -> list[Target]:
    """Manifests, alone and as the index of a shard that is whole."""
    made = write_shard(folder / "shards")

    def read(data: bytes) -> None:
        found = Manifest.from_json(data)
        assert len(found.fingerprint) == 16
        assert found.num_samples >= 0
        assert found.size is not None
        union_of({"mini": found})

    def read_samples(data: bytes) -> None:
        found = Manifest.from_json(data)
        corpus = Corpus(str(folder / "shards"), "train", {"mini": found})
        reader = SampleReader(corpus)
        for index in range(min(3, found.num_samples)):
            with suppress(BadSample):
                reader.read("mini", index)

    files = [made.to_json().encode()]
    return [
        Target("manifest", files, read, (UserError,), [m.json_fields]),
        Target("manifest and shard", files, read_samples, (UserError,), [m.json_fields]),
    ]


def sample(folder: Path) -> list[Target]:
    """The bytes of a sample in a shard whose manifest knows no checksum."""
    made = write_shard(folder / "shards")
    tar = (folder / "shards/mini/train" / made.shards[0].name).read_bytes()
    records = [SampleRecord(r.key, 0, r.length, r.height, r.width) for r in made.shards[0].samples]
    parts = [tar[r.offset : r.offset + r.length] for r in made.shards[0].samples]

    def read(data: bytes) -> None:
        for record in records:
            with suppress(ShardError):
                found = parse_sample(data, "x.tar", record)
                assert found.key == record.key

    inner = m.members({".json": [m.json_fields], ".png": [m.png_chunks], ".jpg": [m.jpeg_segments]})
    return [Target("sample", parts, read, (), [m.tar_headers, inner])]


def one_changed(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    """Reads something of which this file is a part, with the file's bytes replaced."""

    def with_bytes(data: bytes) -> None:
        path.write_bytes(data)
        read()

    return with_bytes


_AWARE: dict[str, Sequence[m.Mutator]] = {
    ".json": [m.json_fields],
    ".png": [m.png_chunks],
    ".jpg": [m.jpeg_segments],
    ".csv": [m.table_cells],
    ".txt": [m.text_lines],
    ".yaml": [m.yaml_fields],
    ".safetensors": [m.safetensors_header, m.safetensors_numbers],
}


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
            own = path.read_bytes()

            def read(data: bytes, name=name, root=root, path=path, own=own) -> None:
                path.write_bytes(data)
                try:
                    _read_root(lambda: open_reader(name, str(root)))
                finally:
                    path.write_bytes(own)

            aware = _AWARE.get(suffix, ())
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

    return [Target("own classes.csv", [table], read, (UserError,), [m.table_cells])]


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
        Target(
            name, [file.read_bytes()], one_changed(path, read), (), memory_mib=512, may_crash=True
        )
        for name, file in targets
    ]


def archive(folder: Path) -> list[Target]:
    """Zips and tars, of which every member is read."""
    content = {"a/1.txt": b"one" * 300, "a/b/2.png": pngs()[0], "c.json": b'{"a": [1, 2]}'}
    tar = m.tarred(content)
    files = {".zip": [m.zipped(content)], ".tar": [tar], ".tar.gz": [gzip.compress(tar)]}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)
    files[".zip"].append(buffer.getvalue())
    aware = {".zip": [m.zip_directory], ".tar": [m.tar_headers], ".tar.gz": []}

    def reader(suffix: str) -> Callable[[], None]:
        def read() -> None:
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


def write_checkpoint(folder: Path) -> None:
    """A tiny checkpoint with all its text files."""
    torch.manual_seed(0)
    lseg = build_lseg(tiny_model(), 512)
    names = ("road", "sky", "car")
    extra = {
        "run": {"name": "tiny", "storage": "/tmp/runs"},
        "data": {"shards": "/tmp/shards", "augment": {"base_px": 64, "crop_px": 48}},
    }
    save_checkpoint(folder, lseg, names, extra, texts=("a road", "a sky", "a car"))
    tags = {"git_commit": "0" * 40, "manifest.mini": "0" * 16, "step": "7"}
    (folder / "provenance.json").write_text(json.dumps(tags))
    (folder / "metrics.json").write_text(json.dumps({"step": 7, "val/miou": 0.5}))


def checkpoint(folder: Path) -> list[Target]:
    """Checkpoint folders of which one file is damaged: the network, and its past."""
    write_checkpoint(folder / "good")
    targets = []
    for name in ("config.yaml", WEIGHTS, LABELS, TEXTS, "provenance.json", "metrics.json"):
        whole = (folder / "good" / name).read_bytes()
        path = folder / f"changed-{name}"
        write_checkpoint(path)

        def read(path=path, name=name) -> None:
            if name in (WEIGHTS, "config.yaml", LABELS, TEXTS):
                with suppress(ModelError, FileNotFoundError):
                    lseg = LSeg.load(path)
                    for key, value in lseg.state_dict().items():
                        assert value.isfinite().all(), f"{key} is not finite"
            if name != WEIGHTS:
                past = read_provenance(path)
                assert past.step is not None
                assert isinstance(past.group("data", "augment"), dict)

        targets.append(
            Target(
                f"checkpoint {name}",
                [whole],
                one_changed(path / name, read),
                (UserError,),
                _AWARE[Path(name).suffix],
                memory_mib=1024,
            )
        )
    return targets


def ckpt(folder: Path) -> list[Target]:
    """Published checkpoints: a zip of numbers and a pickle that is never run."""
    torch.manual_seed(0)
    good, path = folder / "good.ckpt", folder / "changed.ckpt"
    export_official(build_lseg(tiny_model(), 512), good)

    def read() -> None:
        import_official(path)

    inner = m.members({"/data.pkl": [m.pickle_codes, *m.BLIND]})
    return [
        Target(
            "ckpt",
            [good.read_bytes()],
            one_changed(path, read),
            (ModelError,),
            [m.zip_directory, inner, inner],
            memory_mib=512,
        )
    ]


_WHEN = "2026-01-01 00:00:00.000+00:00"


def records(folder: Path) -> list[Target]:
    """Small files that this project wrote itself: journals, identities, states, results, labels."""
    identity = RunIdentity(experiment="lseg", run_name="r", run_key="k" * 16)
    kinds = [
        to_line(identity, Record(kind="metrics", time_ms=1, step=3, values={"train/loss": 1.0})),
        to_line(identity, Record(kind="params", time_ms=1, values={"train.lr": "0.1"})),
    ]
    storage = LocalStorage(folder)
    states = StateFile(storage)
    states.write(
        Attempt("0" * 16, "night", {"a": "b"}, {"a": "c"}, ("new data",), "fresh", "", "1", _WHEN)
    )
    result = results.Result("t1", {"train.lr": 0.1}, 3, "finished", {"val/miou": 0.5}, "/x", 1.5)
    results.write(storage, result)
    state_bytes = (folder / "state.json").read_bytes()
    result_bytes = (folder / "results/t1.json").read_bytes()
    labels = folder / "labels.txt"

    def journal(data: bytes) -> None:
        for line in data.split(b"\n"):
            with suppress(ValueError):
                from_line(line)

    def read_result() -> None:
        for found in results.read_all(storage).values():
            assert isinstance(found.is_done, bool)
            found.value("val/miou")

    def lease(data: bytes) -> None:
        fields = _parse(data)
        assert _name(fields)
        _lives(fields)

    lock = b'{"token": "x", "host": "h", "pid": 1, "place": "p", "started": 1.5, "since": "s"}\n'
    predict = {"images": ("x.jpg",), "checkpoint": "c", "labels_file": str(labels)}
    text = "road\nsky\nBäume\n".encode()
    return [
        Target("journal", kinds, journal, (), [m.json_lines]),
        Target("identity", [identity_bytes(identity)], identity_from, (), [m.json_fields]),
        Target(
            "retrain state",
            [state_bytes],
            one_changed(folder / "state.json", states.read),
            (UserError,),
            [m.json_fields],
        ),
        Target(
            "sweep result",
            [result_bytes],
            one_changed(folder / "results/t1.json", read_result),
            (),
            [m.json_fields],
        ),
        Target("lease", [lock], lease, (), [m.json_fields]),
        Target(
            "label list",
            [text],
            one_changed(labels, lambda: read_labels(PredictConfig(**predict), ("road",))),
            (UserError,),
            [m.text_lines],
        ),
    ]


KINDS: dict[str, Build] = {
    build.__name__: build
    for build in (
        jpeg, photo, label, manifest, sample, roots, own, mat, archive, checkpoint, ckpt, records,
    )
}  # fmt: skip

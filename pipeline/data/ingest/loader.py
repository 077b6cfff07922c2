"""Rows of the stream in, crops out: the decoding, as each loader actor does it."""

import ctypes
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from isal import isal_zlib

from pipeline.data.ingest.augment import load_crop
from pipeline.data.ingest.config import DataConfig
from pipeline.data.ingest.mixture import Mixture, Row
from pipeline.data.pixels.checks import BadSample, bad_sample_errors
from pipeline.data.shards.cache import ShardCache, default_folder
from pipeline.data.shards.corpus import Corpus, SampleReader
from pipeline.data.taxonomy import IGNORE

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of two parameters of glibc's malloc, from its malloc.h."""
_Loaded = tuple[int, str]
"""CRC-32 of a stored sample, and what is wrong with it, if anything."""


class CropLoader:
    """Reads samples and cuts their crops, on `data.loader_threads` threads."""

    def __init__(self, corpus: Corpus, mixture: Mixture, config: DataConfig) -> None:
        self._reader = SampleReader(corpus, open_cache(config, corpus.uri))
        self._mixture = mixture
        self._config = config
        self._threads = ThreadPoolExecutor(config.loader_threads, thread_name_prefix="decode")
        self._memory = _Memory()

    def load(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """The crops of some rows.

        Returns:
            `image` (B, H, W, 3) uint8, `label` (B, H, W) uint8, `t` (B,) int64 (position in the
            stream), `crc32` (B,) int64 (of the stored image and label), `bad` (B,) bool (replaced
            by a blank, because the stored sample does not decode), `problem` (B,) str (shard, key
            and reason of a bad one, else "").
        """
        image, label = self._memory.take(len(rows), self._config.augment.crop_px)
        checksums, problems = zip(*self._threads.map(self._load, rows, image, label), strict=True)
        return {
            "image": image,
            "label": label,
            "t": np.array([row.t for row in rows]),
            "crc32": np.array(checksums, np.int64),
            "bad": np.array([bool(problem) for problem in problems]),
            "problem": np.array(problems, dtype=object),
        }

    def _load(self, row: Row, image: np.ndarray, label: np.ndarray) -> _Loaded:
        """Fills one row of the batch in place; says what is wrong with a bad sample."""
        name = self._mixture.datasets[row.dataset]
        try:
            stored = self._reader.read_stored(name, row.sample)
        except BadSample as error:
            image[:], label[:] = 0, IGNORE
            return 0, str(error)
        try:
            # Whatever a decoder raises: another attempt would only meet the same sample again.
            with bad_sample_errors("the sample"):
                num_classes = self._reader.num_classes(name)
                crop = image, label, num_classes
                load_crop(stored.jpeg, stored.png, row.seed, self._config.augment, *crop)
        except BadSample as error:
            # A surprise may have come when a part of the crop was written.
            image[:], label[:] = 0, IGNORE
            return 0, f"{self._reader.name_of(name, row.sample)}: {error}"
        label[:] = self._reader.translated(name, label)
        return isal_zlib.crc32(stored.png, isal_zlib.crc32(stored.jpeg)), ""


class _Memory:
    """The arrays of the last blocks, for later ones: 60 MiB of new pages cost the kernel time.

    Arrays are used again only when nothing refers to them any more: by then Ray has copied their
    block into its store. Its generators hold the block before until they have the next one.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def take(self, count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Arrays (count, side, side, 3) and (count, side, side) uint8, whatever they hold."""
        shape = (count, side, side)
        for at, pair in enumerate(self._pairs):
            # A view, a buffer of Arrow's or a name elsewhere would each be a reference more than
            # the pair's and the call's.
            if pair[1].shape == shape and all(sys.getrefcount(pair[i]) == 2 for i in (0, 1)):
                self._pairs.append(self._pairs.pop(at))
                return pair
        new = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)
        self._pairs = [*self._pairs[-1:], new]
        return new


def keep_freed_memory() -> None:
    """Lets this process keep freed memory of up to 64 MiB a thread, for the next sample.

    By default glibc gives large arrays back to the kernel at once, and its new pages for the label
    and the copies of each image of 2048x1024 take a quarter of the loader's time. Other C
    libraries have no such parameter, and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # The largest that it takes.
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def open_cache(config: DataConfig, uri: str) -> ShardCache | None:
    """The node's cache of shards, where the configuration and the place of the shards want one."""
    if "://" not in uri or not config.cache_gib:
        return None
    folder = Path(config.cache_dir) if config.cache_dir else default_folder()
    return ShardCache(folder, int(config.cache_gib * 2**30))

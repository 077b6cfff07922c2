"""What a training image costs to load: ours against the loaders of the field.

    python -m tests.benchmarks.ingest [--images 1600] [--rounds 1] [--places local,s3]
        [--cases ours,...] [--streaming-python PYTHON]

All cases read the same samples, made here: JPEGs of 1024x683 (one in five upright) of about 160 KB
and their label PNGs, in WebDataset tars; MosaicML's gets the same bytes in its own format. All
scale by 0.5 to 2.0 of 520, crop 480x480, flip, and collate batches of 16. `cv2` and `PIL` are the
usual transforms, which resize the whole picture; `crop` alone is our decoding and cropping in one
process without a loader, `crop-usual` the usual cv2 one. `entropy` is about what reading and
entropy decoding cost: the JPEG at an eighth of its size, for which libjpeg-turbo still takes every
bit of the file and does little else, and the label inflated.

Each case runs in a process of its own, all of them once a round; the tables show medians over the
rounds in which it ended. CPU is that of its whole process tree (with Ray's servers)
from the first batch to the end of the data; `all CPU` counts from the start. Memory is the highest
sum of the processes' proportional set sizes. Ours and Ray Data find a Ray that runs already, as
jobs on a cluster do. With S3, a SeaweedFS server on loopback, whose own work is not counted.
MosaicML Streaming needs other versions of libraries than this project: give the Python of an
environment that has it (it reads a local copy that it makes of S3 itself).
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from jobs.local_ray import require_token
from tests.benchmarks import ingest_peers as peers
from tests.benchmarks.ingest_samples import BATCH, write_samples

TARGETS = (
    ("CPU per image, ours / webdataset cv2", "ours", "wds-cv2", "cpu_ms", 0.75, False),
    ("CPU per image, ours / webdataset PIL", "ours", "wds-pil", "cpu_ms", 0.30, False),
    ("CPU, crop alone / webdataset cv2", "crop", "wds-cv2", "cpu_ms", 0.50, False),
    ("images/s, ours / webdataset cv2", "ours", "wds-cv2", "images_per_s", 1.3, True),
)
FIRST_BATCH_S = 6.0


class Meter(threading.Thread):
    """CPU seconds and memory of this process and all its descendants.

    Args:
        others: Descendants that do not count, with theirs.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib = 0.0
        self._gone: dict[int, float] = {}
        self._lock = threading.Lock()
        self._stop_event = threading.Event()

    def run(self) -> None:
        while not self._stop_event.wait(1.0):
            self.cpu_s()
            total = 0.0
            for process in self._tree():
                try:
                    total += process.memory_full_info().pss
                except (psutil.Error, OSError):
                    continue
            self.peak_mib = max(self.peak_mib, total / 2**20)

    def stop(self) -> None:
        self._stop_event.set()
        self.join()

    def cpu_s(self) -> float:
        """CPU seconds so far; those of processes that have ended as last seen."""
        with self._lock:
            for process in self._tree():
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                self._gone[process.pid] = times.user + times.system
            return sum(self._gone.values())

    def _tree(self) -> list[psutil.Process]:
        me = psutil.Process()
        try:
            return [me, *me.children(recursive=True)]
        except psutil.Error:
            return [me]


def measure(batches: Iterator[Any], began: float, meter: Meter, cpu_before: float) -> dict:
    """Takes all batches; the window of the steady figures begins with the first one."""
    first = next(batches)
    first_s, cpu_first = time.perf_counter() - began, meter.cpu_s()
    images, touched = 0, 0
    for batch in batches:
        images += len(batch[0])
        touched += int(batch[0][0, 0, 0, 0]) + int(batch[1][0, 0, 0])
    seconds = time.perf_counter() - began - first_s
    cpu = meter.cpu_s()
    return {
        "first_batch_s": first_s,
        "images": images + len(first[0]),
        "images_per_s": images / seconds,
        "cpu_ms": 1e3 * (cpu - cpu_first) / images,
        "all_cpu_ms": 1e3 * (cpu - cpu_before) / (images + len(first[0])),
    }


def ours(uri: str, images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Through Ray Data and the split that Ray Train makes for its workers."""
    from pipeline.data.ingest.share import NodeShare, batches_per_block
    from pipeline.data.ingest.stream import (
        DataConfig,
        batches_of,
        build_mixture,
        node_stream,
        open_corpus,
    )

    config = DataConfig(shards=uri, loader_threads=1)
    corpus = open_corpus(uri, "train")
    mixture = build_mixture(corpus, config, BATCH, 0)
    share = NodeShare(
        start=0,
        stop=images // BATCH * BATCH,
        rows_per_batch=BATCH,
        batches_per_block=batches_per_block(BATCH, config.augment.crop_px),
        num_workers=1,
        workers=(0,),
    )
    stream = node_stream(corpus, mixture, config, share, num_loaders=2, cpus=0.5)
    (consumer,) = stream.streaming_split(1, equal=False)
    for batch in batches_of(consumer, BATCH):
        yield batch["image"], batch["label"]


def crop_alone(uri: str, images: int, how: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads, decodes and crops in this process, one after the other, without a loader.

    Args:
        uri: Folder of the shards.
        images: How many.
        how: `ours`, `usual`, or `entropy`: nothing but reading and entropy decoding.
    """
    from pipeline.data.ingest.augment import AugmentConfig, load_crop
    from pipeline.data.ingest.stream import SampleReader, open_corpus
    from pipeline.data.pixels.decode import decode_jpeg, decode_label

    corpus = open_corpus(uri, "train")
    reader, config = SampleReader(corpus), AugmentConfig()
    (name, size), *_ = corpus.sizes.items()
    for start in range(0, images // BATCH * BATCH, BATCH):
        image = np.zeros((BATCH, 480, 480, 3), np.uint8)
        label = np.full((BATCH, 480, 480), 255, np.uint8)
        for row in range(BATCH):
            stored = reader.read_stored(name, (start + row) * 7919 % size)
            if how == "usual":
                image[row], label[row] = peers.transform_cv2(stored.jpeg, stored.png)
            elif how == "entropy":
                decode_jpeg(stored.jpeg, decode_label(stored.png).shape, 8)
            else:
                seed = start + row
                load_crop(stored.jpeg, stored.png, seed, config, image[row], label[row])
        yield image, label


def cases() -> dict[str, Callable[[str, int], Iterator[Any]]]:
    """What is compared, in the order of the table."""
    return {
        "ours": ours,
        "wds-cv2": functools.partial(peers.webdataset_loader, transform=peers.transform_cv2),
        "wds-pil": functools.partial(peers.webdataset_loader, transform=peers.transform_pil),
        "ray-wds": peers.ray_webdataset,
        "mosaicml": peers.mosaicml,
        "crop": functools.partial(crop_alone, how="ours"),
        "crop-usual": functools.partial(crop_alone, how="usual"),
        "entropy": functools.partial(crop_alone, how="entropy"),
    }


def run_case(name: str, uri: str, images: int) -> dict[str, float]:
    """Measures one case in this process."""
    cv2.setNumThreads(1)
    meter = Meter()
    if name in ("ours", "ray-wds"):
        import ray

        require_token()
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        time.sleep(5)  # As on a cluster that runs already: its servers have started.
    meter.start()
    cpu_before = meter.cpu_s()
    began = time.perf_counter()
    found = measure(iter(cases()[name](uri, images)), began, meter, cpu_before)
    meter.stop()
    return found | {"peak_mib": meter.peak_mib}


def in_own_process(name: str, uri: str, images: int, python: str) -> dict[str, float] | None:
    command = [python, "-m", "tests.benchmarks.ingest", "--case", name, "--uri", uri]
    command += ["--images", str(images)]
    # Each case has its folder, so that no cache of an earlier one helps it.
    with tempfile.TemporaryDirectory(prefix="ingest-case-") as folder:
        environment = {**os.environ, "LSEG_CACHE_DIR": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
        environment |= {"BENCHMARK_FOLDER": folder, "PYTHONWARNINGS": "ignore"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, check=False, timeout=90
            )
        except subprocess.TimeoutExpired:
            print(f"{name}: did not finish in 90 s", file=sys.stderr)
            return None
    if done.returncode:
        print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def in_rounds(
    uri: str, images: int, rounds: int, pythons: dict[str, str]
) -> dict[str, dict[str, float] | None]:
    """The medians of each case over the rounds; None for one that never finished.

    Args:
        uri: Folder of the shards.
        images: How many each case loads.
        rounds: How often.
        pythons: The interpreter of each case, by its name.
    """
    found: dict[str, list[dict[str, float]]] = {case: [] for case in pythons}
    for at in range(rounds):
        for case, python in pythons.items():
            row = in_own_process(case, uri, images, python)
            print(f"round {at + 1}: {case} {json.dumps(row)}", file=sys.stderr, flush=True)
            if row:
                found[case].append(row)
    return {
        case: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        | {"rounds": len(rows)}
        if rows
        else None
        for case, rows in found.items()
    }


def show(place: str, rows: dict[str, dict[str, float] | None], rounds: int) -> None:
    """Prints the table of one place and which targets are reached."""
    print(f"\n{place}, batches of {BATCH}, {os.cpu_count()} cores, medians of {rounds} round(s)")
    heads = ("CPU ms/image", "all CPU", "images/s", "PSS MiB", "first batch s", "images")
    keys = ("cpu_ms", "all_cpu_ms", "images_per_s", "peak_mib", "first_batch_s", "images")
    print(f"{'':12}" + "".join(f"{head:>15}" for head in (*heads, "rounds")))
    for name, row in rows.items():
        cells = [f"{row[key]:15.1f}" for key in keys] if row else ["   did not run"]
        cells += [f"{row['rounds']:11.0f} of {rounds}"] if row else []
        print(f"{name:12}" + "".join(cells))
    for words, one, other, key, target, at_least in TARGETS:
        if one == "crop" and place == "s3":
            continue  # It has no cache, and asks S3 for each sample.
        first, second = rows.get(one), rows.get(other)
        if first and second:
            ratio = first[key] / second[key]
            reached = ratio >= target if at_least else ratio <= target
            sign = ">=" if at_least else "<="
            print(f"{words:42}{ratio:6.2f}  {sign} {target}  {'reached' if reached else 'MISSED'}")
    if first := rows.get("ours"):
        reached = first["first_batch_s"] <= FIRST_BATCH_S
        print(
            f"{'seconds to the first batch, ours':42}{first['first_batch_s']:6.1f}  "
            f"<= {FIRST_BATCH_S}  {'reached' if reached else 'MISSED'}",
            flush=True,
        )


def main() -> None:
    """Makes the samples, runs the cases, prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--places", default="local,s3")
    parser.add_argument("--cases", default=",".join(cases()))
    parser.add_argument("--streaming-python", default=sys.executable)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 1 or args.images < 2 * BATCH:
        parser.error(f"at least 1 round and {2 * BATCH} images")
    if args.case:
        print(json.dumps(run_case(args.case, args.uri, args.images)), flush=True)
        os._exit(0)  # Loaders' and Ray's processes need no goodbye.
    with tempfile.TemporaryDirectory(prefix="ingest-benchmark-") as name, ExitStack() as stack:
        folder = Path(name)
        count, jpeg_kb, png_kb = write_samples(folder / "shards", args.streaming_python)
        print(f"{count} samples: JPEG {jpeg_kb:.0f} KB, label PNG {png_kb:.0f} KB on average")
        for place in args.places.split(","):
            uri = str(folder / "shards")
            if place == "s3":
                from jobs.local_s3 import local_s3
                from pipeline.storage.open import open_storage

                stack.enter_context(local_s3(folder / "s3", ("bench",)))
                remote = open_storage("s3://bench/shards")
                for path in sorted((folder / "shards").rglob("*.*")):
                    remote.upload(path.relative_to(folder / "shards").as_posix(), path)
                uri = remote.uri
            pythons = dict.fromkeys(args.cases.split(","), sys.executable)
            if "mosaicml" in pythons:
                pythons["mosaicml"] = args.streaming_python
            show(place, in_rounds(uri, args.images, args.rounds, pythons), args.rounds)


if __name__ == "__main__":
    main()

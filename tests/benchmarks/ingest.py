"""What a training image costs to load: ours against the loaders of the field.

    python -m tests.benchmarks.ingest [--images 3200] [--rounds 3] [--places local,s3]
        [--sets photo,wide,wide-1040] [--cases ours,...] [--streaming-python PYTHON]

All cases of a set read the same samples, made here: `photo` has JPEGs of 1024x683 (one in five
upright) of about 160 KB and their label PNGs, in WebDataset tars; `wide` has pictures of 2048x1024,
and `wide-1040` the same as `--train_long_side 1040` stores them. MosaicML's gets the same bytes in
its own format. All scale by 0.5 to 2.0 of 520, crop 480x480, flip, and collate batches of 16.
`cv2` and `PIL` are the usual transforms, which resize the whole picture; `crop` alone is our
decoding and cropping in one process without a loader, `crop-usual` the usual cv2 one. `entropy` is
about what reading and entropy decoding cost: the JPEG at an eighth of its size, for which
libjpeg-turbo still takes every bit of the file and does little else, and the label inflated.
`ours-4` has 4 images for a worker and step, and `ours-4-single` one such batch in each block, as it
was before blocks held several. The wide sets have `ours` and `wds-cv2` alone.

Each case runs in a process of its own, all of them once a round; the tables show medians over the
rounds in which it ended, and the ratios those of ratios within a round, with their range. CPU is
that of its whole process tree (with Ray's servers) in a window in the middle of the stream, from
15 % to 75 % of the images, in which all loaders are at work; `all CPU` counts everything from the
start. Memory is the highest sum of the processes' proportional set sizes. Ours and Ray Data find a
Ray that runs already, as jobs on a cluster do. With S3, a SeaweedFS server on loopback, whose own
work is not counted. MosaicML Streaming needs other versions of libraries than this project: give
the Python of an environment that has it (it reads a local copy that it makes of S3 itself).

Exit code 1 if a target is missed; `--out` gets every round's figures.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from jobs.local_ray import require_token
from tests.benchmarks import ingest_peers as peers
from tests.benchmarks.ingest_samples import BATCH, SETS, write_samples

WINDOW = (0.15, 0.75)
"""The part of the stream in which CPU and time are read."""


@dataclass(frozen=True)
class Target:
    """What a figure of one case should be, as a ratio to that of another."""

    words: str
    case: str
    other: str
    key: str
    bounds: dict[str, float]
    """By place."""
    at_least: bool = False


PHOTO_TARGETS = (
    Target("CPU, ours / webdataset cv2", "ours", "wds-cv2", "cpu_ms", {"local": 0.75, "s3": 0.55}),
    Target("CPU, ours / webdataset PIL", "ours", "wds-pil", "cpu_ms", {"local": 0.3, "s3": 0.3}),
    Target("CPU, crop alone / webdataset cv2", "crop", "wds-cv2", "cpu_ms", {"local": 0.5}),
    Target(
        "CPU, 4 a step / one batch a block",
        *("ours-4", "ours-4-single", "cpu_ms", {"local": 0.65, "s3": 0.65}),
    ),
    Target(
        "images/s, ours / webdataset cv2",
        *("ours", "wds-cv2", "images_per_s", {"local": 1.5, "s3": 1.5}),
        at_least=True,
    ),
)
WIDE_TARGETS = (PHOTO_TARGETS[0], PHOTO_TARGETS[-1])
WIDE_CASES = ("ours", "wds-cv2")
FIRST_BATCH_S = 6.0
LIMIT_S = 240
"""Of one case; it shows as one that did not run."""

Rounds = list[dict[str, dict[str, float]]]
"""Of each round, the figures of each case that ended."""


class Meter(threading.Thread):
    """CPU seconds and memory of this process and all its descendants."""

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


def measure(
    batches: Iterator[Any], images: int, began: float, meter: Meter, cpu_before: float
) -> dict[str, float]:
    """Takes all batches; the steady figures are those of the window in the middle."""
    first_s, taken, touched = 0.0, 0, 0
    readings: list[tuple[int, float, float]] = []
    for batch in batches:
        taken += len(batch[0])
        touched += int(batch[0][0, 0, 0, 0]) + int(batch[1][0, 0, 0])
        first_s = first_s or time.perf_counter() - began
        if len(readings) < 2 and taken >= WINDOW[len(readings)] * images:
            readings.append((taken, time.perf_counter(), meter.cpu_s()))
    (taken_before, since, cpu_since), (taken_after, until, cpu_until) = readings
    count = taken_after - taken_before
    return {
        "first_batch_s": first_s,
        "images": taken,
        "images_per_s": count / (until - since),
        "cpu_ms": 1e3 * (cpu_until - cpu_since) / count,
        "all_cpu_ms": 1e3 * (meter.cpu_s() - cpu_before) / taken,
    }


def ours(
    uri: str, images: int, rows: int = BATCH, together: bool = True
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Through Ray Data and the split that Ray Train makes for its workers.

    Args:
        uri: Folder of the shards.
        images: How many.
        rows: Images of one step.
        together: Several batches share a block, as in training; else each has a block of its own.
    """
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
    mixture = build_mixture(corpus, config, rows, 0)
    share = NodeShare(
        start=0,
        stop=images // rows * rows,
        rows_per_batch=rows,
        batches_per_block=batches_per_block(rows, config.augment.crop_px) if together else 1,
        num_workers=1,
        workers=(0,),
    )
    stream = node_stream(corpus, mixture, config, share, num_loaders=2, cpus=0.5)
    (consumer,) = stream.streaming_split(1, equal=False)
    for batch in batches_of(consumer, rows):
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
        "ours-4": functools.partial(ours, rows=4),
        "ours-4-single": functools.partial(ours, rows=4, together=False),
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
    if name == "ray-wds" or name.startswith("ours"):
        import ray

        require_token()
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        time.sleep(5)  # As on a cluster that runs already: its servers have started.
    meter.start()
    cpu_before = meter.cpu_s()
    began = time.perf_counter()
    found = measure(iter(cases()[name](uri, images)), images, began, meter, cpu_before)
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
                command,
                capture_output=True,
                text=True,
                env=environment,
                check=False,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            print(f"{name}: did not finish in {LIMIT_S} s", file=sys.stderr)
            return None
    if done.returncode:
        print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def in_rounds(uri: str, images: int, rounds: int, pythons: dict[str, str]) -> Rounds:
    """Runs each case once a round.

    Args:
        uri: Folder of the shards.
        images: How many each case loads.
        rounds: How often.
        pythons: The interpreter of each case, by its name.
    """
    found: Rounds = []
    for at in range(rounds):
        found.append({})
        for case, python in pythons.items():
            row = in_own_process(case, uri, images, python)
            print(f"round {at + 1}: {case} {json.dumps(row)}", file=sys.stderr, flush=True)
            if row:
                found[-1][case] = row
    return found


def show(title: str, found: Rounds, cases: Iterable[str]) -> None:
    """Prints the table of one set and place."""
    print(f"\n{title}, {os.cpu_count()} cores, medians of {len(found)} round(s)")
    heads = ("CPU ms/image", "range", "all CPU", "images/s", "PSS MiB", "first batch s", "images")
    print(f"{'':14}" + "".join(f"{head:>15}" for head in (*heads, "rounds")))
    for case in cases:
        rows = [each[case] for each in found if case in each]
        if not rows:
            print(f"{case:14}   did not run")
            continue
        keys = ("cpu_ms", "", "all_cpu_ms", "images_per_s", "peak_mib", "first_batch_s", "images")
        costs = [row["cpu_ms"] for row in rows]
        spread = f"{min(costs):.1f} to {max(costs):.1f}"
        cells = [
            f"{statistics.median(row[key] for row in rows):15.1f}" if key else f"{spread:>15}"
            for key in keys
        ]
        print(f"{case:14}" + "".join(cells) + f"{len(rows):10} of {len(found)}")


def missed(place: str, found: Rounds, targets: Iterable[Target]) -> list[str]:
    """Prints what the targets of one set and place came to; those that are missed."""
    told = []
    for target in targets:
        bound = target.bounds.get(place)
        pairs = [(each.get(target.case), each.get(target.other)) for each in found]
        ratios = [one[target.key] / other[target.key] for one, other in pairs if one and other]
        if bound is None or not ratios:
            continue
        ratio, sign = statistics.median(ratios), ">=" if target.at_least else "<="
        reached = ratio >= bound if target.at_least else ratio <= bound
        told += [] if reached else [f"{place}: {target.words}"]
        print(
            f"{target.words:42}{ratio:6.2f} ({min(ratios):.2f} to {max(ratios):.2f})  "
            f"{sign} {bound}  {'reached' if reached else 'MISSED'}"
        )
    if firsts := [each["ours"]["first_batch_s"] for each in found if "ours" in each]:
        reached = statistics.median(firsts) <= FIRST_BATCH_S
        told += [] if reached else [f"{place}: the first batch"]
        print(
            f"{'seconds to the first batch, ours':42}{statistics.median(firsts):6.1f} "
            f"({min(firsts):.1f} to {max(firsts):.1f})  <= {FIRST_BATCH_S}  "
            f"{'reached' if reached else 'MISSED'}",
            flush=True,
        )
    return told


def across(photos: Rounds, narrowed: Rounds, place: str) -> None:
    """Prints what storing pictures no larger than training uses saves each side."""
    for case in WIDE_CASES:
        pairs = [
            (one[case]["cpu_ms"], other[case]["cpu_ms"])
            for one, other in zip(narrowed, photos, strict=True)
            if case in one and case in other
        ]
        if pairs:
            ratios = [one / other for one, other in pairs]
            print(
                f"{place}: CPU of {case}, wide-1040 / wide: {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


def compare(
    folder: Path, name: str, places: Sequence[str], options: argparse.Namespace
) -> tuple[dict[str, Rounds], list[str]]:
    """Makes a set and compares its cases at each place.

    Args:
        folder: Scratch folder of the set, with a running S3 server's bucket `bench` if asked for.
        name: One of `SETS`.
        places: `local`, `s3`.
        options: The arguments of the command.

    Returns:
        The figures by place, and the targets that were missed.
    """
    shards = folder / name
    count, jpeg_kb, png_kb = write_samples(shards, options.streaming_python, name)
    print(f"\n{name}: {count} samples, JPEG {jpeg_kb:.0f} KB, label PNG {png_kb:.0f} KB on average")
    chosen = options.cases.split(",")
    if name != "photo":
        chosen = [case for case in chosen if case in WIDE_CASES]
    pythons = dict.fromkeys(chosen, sys.executable)
    if "mosaicml" in pythons:
        pythons["mosaicml"] = options.streaming_python
    found, told = {}, []
    for place in places:
        uri = str(shards)
        if place == "s3":
            from pipeline.storage.open import open_storage

            remote = open_storage(f"s3://bench/{name}")
            for path in sorted(shards.rglob("*.*")):
                remote.upload(path.relative_to(shards).as_posix(), path)
            uri = remote.uri
        found[place] = in_rounds(uri, options.images, options.rounds, pythons)
        show(f"{name}, {place}, batches of {BATCH}", found[place], pythons)
        targets = PHOTO_TARGETS if name == "photo" else WIDE_TARGETS
        told += [f"{name}, {words}" for words in missed(place, found[place], targets)]
    return found, told


def main() -> int:
    """Makes the samples, runs the cases, prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--places", default="local,s3")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--cases", default=",".join(cases()))
    parser.add_argument("--streaming-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=Path("runs/ingest.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 1 or args.images < 20 * BATCH:
        parser.error(f"at least 1 round and {20 * BATCH} images")
    if args.case:
        print(json.dumps(run_case(args.case, args.uri, args.images)), flush=True)
        os._exit(0)  # Loaders' and Ray's processes need no goodbye.
    figures: dict[str, dict[str, Rounds]] = {}
    told: list[str] = []
    places = args.places.split(",")
    with tempfile.TemporaryDirectory(prefix="ingest-benchmark-") as name, ExitStack() as stack:
        if "s3" in places:
            from jobs.local_s3 import local_s3

            stack.enter_context(local_s3(Path(name) / "s3", ("bench",)))
        for chosen in args.sets.split(","):
            figures[chosen], more = compare(Path(name), chosen, places, args)
            told += more
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(figures, indent=1) + "\n")
    if {"wide", "wide-1040"} <= figures.keys():
        for place in places:
            across(figures["wide"][place], figures["wide-1040"][place], place)
    print("\n" + ("missed: " + "; ".join(told) if told else "every target is reached"))
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())

"""What a conversion costs: ours against a plain loop of Pillow and webdataset.TarWriter.

    python -m tests.benchmarks.convert [--images 1600] [--workers 2] [--rounds 2]

Both sides read the same folder of 1024x683 JPEGs and label PNGs in ADE20K's layout, decode both
files, check them, map the labels, and write the same members into tars; images keep their bytes,
since nothing must shrink. The loop is one process. Ours is the whole job, by Ray Data, with its
listing, fingerprints, checksums, manifest and lock, timed after a first small conversion has
started Ray and its workers. CPU seconds and memory are those of all processes of a side. The sides
take turns, and each one's best round counts.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

TARGET = 1.5
"""Wanted ratio of images a second and core."""
HEIGHT, WIDTH = 683, 1024
PER_SHARD = 50
_DISTINCT = 40
"""Pictures that are rendered; the others are copies under other names."""


def write_root(root: Path, count: int) -> None:
    """An ADE20K root of photograph-like JPEGs and labels with curved outlines."""
    rng = np.random.default_rng(0)
    images, labels = root / "images/training", root / "annotations/training"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for number in range(count):
        image, label = (images / _name(number, ".jpg")), (labels / _name(number, ".png"))
        if number >= _DISTINCT:
            image.write_bytes((images / _name(number % _DISTINCT, ".jpg")).read_bytes())
            label.write_bytes((labels / _name(number % _DISTINCT, ".png")).read_bytes())
            continue
        picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for octave, gain in ((4, 60), (16, 40), (64, 25), (256, 10)):
            coarse = rng.normal(0, gain, (octave * 2 // 3 + 1, octave, 3)).astype(np.float32)
            picture += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        picture += 128 + rng.normal(0, 4, picture.shape)
        cv2.imwrite(
            str(image), np.clip(picture, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90]
        )
        field = cv2.resize(
            rng.normal(0, 1, (6, 9)).astype(np.float32),
            (WIDTH, HEIGHT),
            interpolation=cv2.INTER_CUBIC,
        )
        regions = np.digitize(field, np.linspace(-1.5, 1.5, 9)).astype(np.uint8)
        cv2.imwrite(str(label), rng.permutation(151).astype(np.uint8)[regions])


def _name(number: int, suffix: str) -> str:
    return f"ADE_train_{number + 1:08d}{suffix}"


def plain_loop(root: Path, out: Path) -> int:
    """The conversion as one would write it down."""
    from PIL import Image
    from webdataset.writer import TarWriter

    from pipeline.data.taxonomy import lookup_table

    table = lookup_table("ade20k")
    paths = sorted((root / "images/training").glob("*.jpg"))
    out.mkdir()
    for start in range(0, len(paths), PER_SHARD):
        with TarWriter(str(out / f"{start // PER_SHARD:06d}.tar"), encoder=False) as tar:
            for path in paths[start : start + PER_SHARD]:
                data = path.read_bytes()
                image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                native = np.asarray(Image.open(root / "annotations/training" / f"{path.stem}.png"))
                assert native.shape == image.shape[:2]
                label = table[native]
                png = io.BytesIO()
                Image.fromarray(label).save(png, format="PNG")
                meta = {"source": path.name, "classes": np.unique(label).tolist()}
                tar.write(
                    {
                        "__key__": path.stem.lower(),
                        "jpg": data,
                        "json": json.dumps(meta).encode(),
                        "png": png.getvalue(),
                    }
                )
    return len(paths)


def our_job(root: Path, out: Path, workers: int) -> int:
    """The whole job, in a Ray that runs already."""
    from pipeline.data.prepare.config import PrepareConfig, RootsConfig
    from pipeline.data.prepare.run import prepare

    given = RootsConfig(ade20k=str(root))
    config = PrepareConfig(
        roots=given, out=str(out), splits=("train",), workers=workers, samples_per_shard=PER_SHARD
    )
    return prepare(config).images_converted


class Usage:
    """CPU seconds and peak memory of this process and its children, while the block lasts."""

    def __enter__(self) -> "Usage":
        self.peak_gib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before, self._began = self._cpu(), time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._began
        self.cpu_s = sum(
            seconds - self._before.get(process, 0.0) for process, seconds in self._cpu().items()
        )
        self._ended.set()
        self._thread.join()

    def _family(self) -> list[psutil.Process]:
        return [psutil.Process(), *psutil.Process().children(recursive=True)]

    def _cpu(self) -> dict[psutil.Process, float]:
        found = {}
        for process in self._family():
            try:
                times = process.cpu_times()
                found[process] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return found

    def _watch(self) -> None:
        # Seldom: looking costs tens of milliseconds, which count as the side's own.
        while not self._ended.wait(2.0):
            total = 0
            for process in self._family():
                try:
                    total += process.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue
            self.peak_gib = max(self.peak_gib, total / 2**30)


def measure(case: str, root: Path, out: Path, workers: int) -> dict[str, float]:
    """One side in this process, after its start-up."""
    cv2.setNumThreads(1)
    if case == "ours":
        from jobs.cli import start_ray

        start_ray(workers)
        our_job(root.with_name("warm"), out.with_name(f"{out.name}-warm"), workers)
        with Usage() as usage:
            count = our_job(root, out, workers)
    else:
        plain_loop(root.with_name("warm"), out.with_name(f"{out.name}-warm"))
        with Usage() as usage:
            count = plain_loop(root, out)
    cores = workers if case == "ours" else 1
    return {
        "images_per_s": count / usage.wall_s,
        "per_core": count / usage.wall_s / cores,
        "cpu_ms": 1000 * usage.cpu_s / count,
        "peak_gib": usage.peak_gib,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--case", choices=["plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        out = args.folder / f"{args.case}-{time.monotonic_ns()}"
        print(json.dumps(measure(args.case, args.folder / "root", out, args.workers)))
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        write_root(Path(folder, "root"), args.images)
        write_root(Path(folder, "warm"), 4 * PER_SHARD)
        print(f"{args.images} images of {WIDTH}x{HEIGHT}, {args.workers} workers")
        print(f"{'case':8}{'images/s':>10}{'per core':>10}{'CPU ms/image':>14}{'peak GiB':>10}")
        best: dict[str, dict[str, float]] = {}
        for _ in range(args.rounds):
            for case in ("plain", "ours"):
                command = [sys.executable, "-m", "tests.benchmarks.convert", "--case", case]
                command += ["--folder", folder, "--workers", str(args.workers)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                row = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{case:8}{row['images_per_s']:10.1f}{row['per_core']:10.1f}"
                    f"{row['cpu_ms']:14.1f}{row['peak_gib']:10.2f}",
                    flush=True,
                )
                if case not in best or row["per_core"] > best[case]["per_core"]:
                    best[case] = row
        ours, plain = best["ours"], best["plain"]
        ratio = ours["per_core"] / plain["per_core"]
        print(
            f"{'ratio':8}{ours['images_per_s'] / plain['images_per_s']:9.2f}x{ratio:9.2f}x"
            f"{plain['cpu_ms'] / ours['cpu_ms']:13.2f}x"
        )
        print(f"wanted: {TARGET}x per core  {'reached' if ratio >= TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()

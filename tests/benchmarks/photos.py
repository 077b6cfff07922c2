"""What language is worth on photographs: classes that no training named, by three text encoders.

    python -m tests.benchmarks.photos --photos DIR [--seeds 0 1 2] [--steps 450] [--out FOLDER]
        [--constants 0 2 4]
    python -m tests.benchmarks.photos --photos DIR --dataset camvid --held_out car pedestrian

Trains `jobs/recipes/photos.yaml` on one own dataset of a folder, without the classes of
`--held_out`, once for each encoder and seed, and once with a rate of almost 0 (untrained). Then
asks the held-out classes among themselves on their own pixels, and all of the dataset's
classes together, for several constants of calibration. Everything goes through the jobs, in
processes of their own; the same command continues where a killed one ended. A row is a mean over
seeds and the spread (standard deviation) of single runs.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "jobs/recipes/photos.yaml"
HELD_OUT = ("jeans", "blouse", "cardigan", "sneakers", "purse", "jacket", "boots")
ENCODERS = ("package:all-minilm-l6-v2", "stand-in", "one-hot")
CONSTANTS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
BARE = ("stand-in", "one-hot")
"""Encoders that are shown a label alone: to them the words of a sentence are as good as its own."""
ALONE = ("class_accuracy", "miou")
TOGETHER = ("miou_seen_classes", "miou_unseen_classes", "miou_harmonic")

Figures = dict[str, float]


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, evaluates, and prints the table."""
    given = _parser().parse_args(argv)
    out = Path(given.out).resolve()
    shards = convert(Path(given.photos).resolve(), out)
    found: dict[str, list[Figures]] = {}
    for name, encoder, seed, more in runs(given.encoders, given.seeds, given.steps):
        more += ["--data.weights", json.dumps({given.dataset: 1}), "--model.text.encoder", encoder]
        checkpoint = train(out, shards, f"{name}-seed-{seed}", seed, given.held_out, more)
        figures = score(out, shards, checkpoint, given.dataset, given.constants)
        found.setdefault(name, []).append(figures)
        print(json.dumps({"run": name, "seed": seed} | figures), flush=True)
    print(f"\nheld out: {', '.join(given.held_out)}; chance: {1 / len(given.held_out):.3f}")
    for line in table(found):
        print(line)


def runs(
    encoders: Sequence[str], seeds: Sequence[int], steps: int
) -> Iterable[tuple[str, str, int, list[str]]]:
    """Name, text encoder, seed and further settings of each training."""
    # All encoders by one seed first: a comparison that is cut off is one of fewer seeds.
    for seed in seeds:
        for encoder in encoders:
            name = encoder.removeprefix("package:")
            more = ["--model.text.templates", "none"] if encoder in BARE else []
            yield name, encoder, seed, ["--train.steps", str(steps), *more]
        rest = ["--train.steps", "1", "--train.warmup_steps", "0", "--train.lr", "1e-12"]
        yield "untrained", encoders[0], seed, rest


def convert(photos: Path, out: Path) -> Path:
    """Makes the shards of all datasets in their own words; does nothing twice."""
    words = []
    for table_of_classes in sorted(photos.glob("*/classes.csv")):
        words += [f"--own.{table_of_classes.parent.name}.root", str(table_of_classes.parent)]
    shards = out / "shards"
    job("prepare_shards", *words, "--out", str(shards), "--taxonomy", "native")
    return shards


def train(
    out: Path,
    shards: Path,
    name: str,
    seed: int,
    held_out: Sequence[str],
    more: Sequence[str],
) -> Path:
    """Trains one network, or finds it trained, and returns its last checkpoint."""
    words = ["--config", RECIPE, "--data.shards", str(shards), "--run.storage", str(out / "train")]
    words += ["--run.name", name, "--run.seed", str(seed)]
    words += ["--train.held_out", json.dumps(list(held_out)), *more]
    job("train_mix", *words)
    return max((out / "train" / name).glob("step_*"))


def score(
    out: Path, shards: Path, checkpoint: Path, dataset: str, constants: Iterable[float]
) -> Figures:
    """The figures of one network, with the unseen among themselves and among all."""
    common = [
        "--checkpoint",
        str(checkpoint),
        "--shards",
        str(shards),
        "--datasets",
        f"[{dataset}]",
    ]
    common += ["--out", str(out / "evaluation"), "--examples", "0"]
    alone = evaluated(out, *common, "--labels", "unseen-alone")
    found = {f"alone/{name}": alone[f"{dataset}/{name}"] for name in ALONE}
    for constant in constants:
        words = [] if not constant else ["--calibration", str(constant)]
        report = evaluated(out, *common, "--labels", "native", *words)
        for name in TOGETHER:
            # Without a pixel of a seen or of an unseen class there is no such figure.
            if (value := report.get(f"{dataset}/{name}")) is not None:
                found[f"{constant:g}/{name}"] = value
    return found


def evaluated(out: Path, *words: str) -> dict[str, Any]:
    """The figures of the report that an evaluation writes."""
    before = set((out / "evaluation").glob("*/report.json"))
    times = {path: path.stat().st_mtime_ns for path in before}
    job("evaluate", *words)
    after = (out / "evaluation").glob("*/report.json")
    (written,) = (path for path in after if times.get(path) != path.stat().st_mtime_ns)
    return json.loads(written.read_text(encoding="utf-8"))["figures"]


def job(name: str, *words: str) -> None:
    """Runs a job in a process of its own; its log goes to standard error."""
    command = [sys.executable, f"jobs/{name}.py", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {done.returncode}")


def table(found: dict[str, list[Figures]]) -> Iterable[str]:
    """Lines of the table: a run's name, and for each figure mean and spread."""
    names = dict.fromkeys(name for rows in found.values() for row in rows for name in row)
    for name in names:
        yield f"\n{name}"
        for run, rows in found.items():
            values = [row[name] for row in rows if name in row]
            if not values:
                continue
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            yield f"  {run:24} {statistics.mean(values):.3f} +- {spread:.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--photos", required=True)
    parser.add_argument("--out", default="runs/photos-benchmark")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--constants", type=float, nargs="+", default=list(CONSTANTS))
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--held_out", nargs="+", default=list(HELD_OUT))
    parser.add_argument("--dataset", default="ccp")
    return parser


if __name__ == "__main__":
    main()

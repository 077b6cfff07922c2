"""Checks dataset downloads before their conversion, or finished shards after it.

    python jobs/doctor.py --roots.cityscapes DIR --roots.ade20k s3://raw/ade --out report.json
    python jobs/doctor.py --shards s3://lseg/mix7

Exit code 0: all is well; 1: something would be lost, or a shard is not what its manifest says;
2: the command itself is wrong. `--sample 0.1` reads a tenth of the samples.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import main
from pipeline.data.datasets.base import check_split_names
from pipeline.data.datasets.own import OwnDataset, check_own_name
from pipeline.data.prepare.config import RootsConfig
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Which downloads or shards to check."""

    roots: RootsConfig = field(default_factory=RootsConfig)
    """The downloads to check."""
    own: dict[str, OwnDataset] = field(default_factory=dict)
    """Your own datasets to check, as `prepare_shards.py` takes them: `{shop: {root: DIR}}`."""
    shards: str = ""
    """The folder of finished shards to check: a local directory or `s3://bucket/prefix`."""
    splits: tuple[str, ...] | None = None
    """Splits to check; not set: all that exist."""
    sample: float = 1.0
    """Share of the samples to read, spread evenly; listings and shard bytes are read whole."""
    out: str = ""
    """File to write the whole report to, as JSON."""
    workers: int | None = None
    """Number of processes on this machine; not set: one for each CPU."""

    def __post_init__(self) -> None:
        if not self.roots.given and not self.own and not self.shards:
            raise UserError(
                "roots, own, shards: none is set; give a --roots.DATASET, --own or --shards"
            )
        for name in self.own:
            check_own_name(name)
        if self.splits is not None:
            check_split_names(self.splits)
        if not 0 < self.sample <= 1:
            raise UserError(f"sample={self.sample}: must be above 0 and at most 1")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers={self.workers}: must be at least 1")
        if self.out and not os.path.isdir(Path(self.out).absolute().parent):
            raise UserError(f"out={self.out}: its folder does not exist; create it")
        if self.out and os.path.isdir(self.out):
            raise UserError(f"out={self.out}: is a folder; give a file such as report.json")


def run(config: DoctorConfig) -> int:
    """Checks, prints the tables, writes the JSON, and returns the number of problems."""
    from rich.console import Console

    from pipeline.data.inspect.roots import check_roots
    from pipeline.data.inspect.shards import check_shards
    from pipeline.storage.open import open_storage
    from pipeline.storage.places import ensure_writable_file

    target = Path(config.out).absolute()
    if config.out:
        ensure_writable_file("out", config.out)
    reports = []
    if config.roots.given or config.own:
        given = config.roots.given
        reports.append(check_roots(given, config.splits, config.sample, config.workers, config.own))
    if config.shards:
        reports.append(check_shards(config.shards, config.splits, config.sample, config.workers))
    # Piped into a file there is no terminal to be as wide as.
    columns = os.environ.get("COLUMNS", "")
    wide = int(columns) if columns.isdecimal() and int(columns) else 140
    console = Console(width=None if sys.stdout.isatty() else wide)
    for report in reports:
        console.print(report.table())
    lost = sum(report.lost for report in reports)
    if config.out:
        document = {"lost": lost, "sample": config.sample}
        document |= {report.title: report.to_dict() for report in reports}
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        open_storage(str(target.parent)).write(target.name, text.encode())
    remarks = sum(report.remarks for report in reports)
    ending = f"; {remarks:,} remarks above should be read" if remarks else ""
    print((f"{lost:,} problems" if lost else "nothing would be lost") + ending)
    return lost


def command() -> int:
    """Runs the job; its exit code is 1 when something would be lost."""
    lost = []
    return main(DoctorConfig, lambda config: lost.append(run(config)), None, __doc__) or any(lost)


if __name__ == "__main__":
    sys.exit(command())

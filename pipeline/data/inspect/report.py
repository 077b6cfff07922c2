"""What a check found: a table for people, JSON for programs, and whether anything would be lost."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from pipeline.errors import printable

KINDS = {
    # Roots: what the conversion would leave out, or not find at all.
    "layout": "not the folder of this dataset",
    "access": "folder that cannot be read, so that nobody knows what is in it",
    "empty": "no sample of this split",
    "pair": "image or label without its partner, or a name that clashes",
    "image": "image that cannot be read",
    "label": "label that cannot be read, or is not encoded as this dataset's",
    "size": "image and label of different sizes",
    "unknown id": "label with ids outside the dataset's table",
    # Shards: what makes them differ from their manifest.
    "unfinished": "folder without a manifest",
    "manifest": "manifest that cannot be read, or whose classes cannot be trained on",
    "shard": "shard that is missing, cut short or changed",
    "offset": "sample that is not where, or not what, the manifest says",
    "decode": "stored sample that does not decode as recorded",
    "histogram": "class histogram that differs from the labels",
    "stray": "tar that is not in the manifest",
    # Nothing is lost by these, but they are good to know.
    "rotated": "image with an EXIF rotation (ignored, as the labels do)",
    "grey": "grey image (stored as colour)",
    "CMYK": "CMYK image (stored as RGB)",
    "duplicate": "the same image file in two splits",
    "ids": "the labels of a split as a whole",
    "note": "about the download as a whole",
}
"""Every kind of finding, and what it means."""

NOTES = frozenset({"rotated", "grey", "CMYK", "duplicate", "ids", "note"})
"""Kinds by which nothing is lost."""


@dataclass(frozen=True)
class Finding:
    """One finding about one file."""

    kind: str
    """A key of KINDS."""
    name: str
    """The file, or what else the finding is about."""
    detail: str = ""


@dataclass
class Section:
    """What was found in one split of a dataset."""

    dataset: str
    split: str
    """The split; empty for findings about the dataset as a whole."""
    samples: int = 0
    checked: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Findings by which something is lost."""
        return sum(finding.kind not in NOTES for finding in self.findings)

    @property
    def name(self) -> str:
        """`dataset/split`."""
        return f"{self.dataset}/{self.split}" if self.split else self.dataset


@dataclass
class CheckReport:
    """All sections of a check."""

    title: str
    """What was checked: `roots` or `shards`."""
    sections: list[Section] = field(default_factory=list)

    def section(self, dataset: str, split: str) -> Section:
        """The section of a split, added if there is none yet."""
        for section in self.sections:
            if (section.dataset, section.split) == (dataset, split):
                return section
        self.sections.append(Section(dataset, split))
        return self.sections[-1]

    @property
    def lost(self) -> int:
        """Findings by which something is lost."""
        return sum(section.lost for section in self.sections)

    @property
    def remarks(self) -> int:
        """Findings by which nothing is lost, but which should be read."""
        return sum(len(section.findings) - section.lost for section in self.sections)

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain values for JSON, with every finding."""
        return [
            {
                "dataset": section.dataset,
                "split": section.split,
                "samples": section.samples,
                "checked": section.checked,
                "lost": section.lost,
                "findings": {
                    kind: [{"name": f.name, "detail": f.detail} for f in found]
                    for kind, found in _by_kind(section.findings).items()
                },
            }
            for section in self.sections
        ]

    def table(self) -> RenderableType:
        """The tables for the terminal: the splits, and the findings with one example each."""
        splits = Table(title=self.title, title_justify="left", box=box.SIMPLE)
        for name in ("dataset", "split"):
            splits.add_column(name, no_wrap=True)
        for name in ("samples", "checked", "problems", "remarks"):
            splits.add_column(name, justify="right")
        splits.add_column("")
        found = Table(box=box.SIMPLE)
        found.add_column("where", no_wrap=True)
        found.add_column("count", justify="right")
        found.add_column("what", min_width=24)
        found.add_column("such as", overflow="fold", ratio=1)
        for section in self.sections:
            kinds = Counter(finding.kind for finding in section.findings)
            remarks = sum(count for kind, count in kinds.items() if kind in NOTES)
            splits.add_row(
                section.dataset,
                section.split,
                f"{section.samples:,}",
                f"{section.checked:,}",
                f"{section.lost:,}",
                f"{remarks:,}",
                "[bold red]problems" if section.lost else "[green]ok",
            )
            for kind, examples in _by_kind(section.findings).items():
                first = examples[0]
                text = printable(f"{first.name}: {first.detail}" if first.detail else first.name)
                style = "" if kind in NOTES else "red"
                found.add_row(
                    section.name, f"{len(examples):,}", KINDS[kind], escape(text), style=style
                )
        return Group(splits, found) if found.row_count else splits


def _by_kind(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Findings by kind in the order of KINDS, those of a kind by name."""
    groups: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in sorted(findings, key=lambda f: (f.name, f.detail)):
        groups[finding.kind].append(finding)
    return {kind: found for kind, found in groups.items() if found}

"""Published results beside ours; each row says where it comes from.

Only rows whose source was read, none from memory: `published.json`.
"""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PublishedRow:
    """One model's figures by one protocol."""

    model: str
    values: dict[str, float]
    """0..1, by the names of our figures: `miou`, `fold0/miou`, ..."""
    source: str


def published_rows(protocol: str) -> tuple[PublishedRow, ...]:
    """The rows of a protocol; none for protocols of our own."""
    rows = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return tuple(
        PublishedRow(row["model"], row["values"], row["source"])
        for row in rows
        if row["protocol"] == protocol
    )

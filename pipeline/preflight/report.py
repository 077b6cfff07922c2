"""What was found about a cluster: a line a check, as a table or as JSON."""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from pipeline.errors import printable

Status = Literal["ok", "remark", "failed"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    """What was tried, such as `gpus`."""
    status: Status
    """`remark`: a training would run, and should be looked at all the same."""
    found: str
    """What was seen."""
    advice: str = ""
    """What to do about it; empty where all is well."""
    figures: dict[str, float] = field(default_factory=dict)
    """What was measured, with units in the names."""


class Report:
    """All findings, in the order in which they were made."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(self, check: str, status: Status, found: str, advice: str = "", **figures: float):
        """Notes the outcome of a check."""
        self.findings.append(Finding(check, status, printable(found), advice, figures))

    @property
    def num_failed(self) -> int:
        """How many checks failed."""
        return sum(each.status == "failed" for each in self.findings)

    def lines(self) -> list[str]:
        """The table, and a line that says how it ended."""
        names = {"ok": "ok", "remark": "remark", "failed": "FAILED"}
        width = max((len(each.check) for each in self.findings), default=0)
        lines = []
        for each in self.findings:
            advice = f": {each.advice}" if each.advice else ""
            lines.append(f"{names[each.status]:7} {each.check:{width}}  {each.found}{advice}")
        if self.num_failed:
            return [*lines, f"{self.num_failed} of {len(self.findings)} checks failed"]
        return [*lines, f"{len(self.findings)} checks passed"]

    def to_json(self) -> str:
        """The same for programs."""
        document = {"failed": self.num_failed, "checks": [asdict(each) for each in self.findings]}
        return json.dumps(document, indent=1, ensure_ascii=False)

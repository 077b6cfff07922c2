"""Records of what a run's page shows beside curves: datasets, images, tables and models.

`run_page` sends them. They are redacted and cut here, as a journal holds nothing else.
"""

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.tracking.limits import (
    MAX_DATASET_CHARS,
    MAX_DIGEST_CHARS,
    MAX_PARAM_CHARS,
    name_of_metric,
)
from pipeline.tracking.redaction import redact_text, redact_tree, redact_values
from pipeline.tracking.run_page import CHECKPOINT_TAG

_IMAGE_AND_LABEL = json.dumps(
    {
        "mlflow_colspec": [
            {"name": name, "type": "binary", "required": True} for name in ("image", "label")
        ]
    }
)


@dataclass(frozen=True, kw_only=True)
class InputDataset:
    """A dataset that a run reads, as MLflow's page shows it."""

    name: str
    digest: str
    """Fingerprint of all that is stored."""
    source: str
    """Address: a path, or `s3://bucket/folder/file`."""
    context: str
    """What for: `train`, `validation` or `evaluation`."""
    profile: Mapping[str, Any] = field(default_factory=dict)
    """Further facts; `num_rows` is shown beside the name."""

    def values(self) -> dict[str, str]:
        """The dataset as a record's values."""
        scheme = self.source.partition("://")[0] if "://" in self.source else "local"
        return {
            "name": redact_text(self.name)[:MAX_DATASET_CHARS],
            "digest": self.digest[:MAX_DIGEST_CHARS],
            "source_type": scheme,
            "source": json.dumps({"uri": redact_text(self.source)}),
            "schema": _IMAGE_AND_LABEL,
            "profile": json.dumps(redact_tree(self.profile)),
            "context": self.context,
        }


@dataclass(frozen=True, kw_only=True)
class LoggedCheckpoint:
    """A checkpoint that becomes a logged model of the run."""

    name: str
    address: str
    """Where it lies; its files stay there."""
    step: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """What it achieved; those named `val/DATASET/...` are shown as of that dataset."""
    signature: Mapping[str, str]
    """What it takes and gives, as MLflow writes it in its file MLmodel."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Digest of each dataset that the metrics are of."""

    def text(self) -> str:
        """The model as a record's text."""
        tags = {**self.tags, CHECKPOINT_TAG: self.address, "step": str(self.step)}
        return json.dumps(
            {
                "name": self.name,
                "type": "segmentation",
                "tags": redact_values(tags, MAX_PARAM_CHARS),
                "params": redact_values(self.params, MAX_PARAM_CHARS),
                "metrics": dict(self._metrics()),
                "signature": dict(self.signature),
            }
        )

    def _metrics(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, value in self.metrics.items():
            if not math.isfinite(value):  # JSON has no such number, and a chart no such point.
                continue
            metric: dict[str, Any] = {"value": value}
            found = re.fullmatch(r"val/([^/]+)/[^/]+", key)
            if found and found[1] in self.digests:
                metric |= {"dataset": found[1], "digest": self.digests[found[1]]}
            yield name_of_metric(key), metric


def picture_path(name: str, step: int, time_ms: int) -> str:
    """Names the file of an image such that MLflow's page draws those of one name as a chart."""
    return f"images/{name}+step+{step}+timestamp+{time_ms}+0.png"


def picture_text(png: bytes) -> str:
    """The content of an image as a record's text."""
    return base64.b64encode(png).decode("ascii")


def table_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as MLflow's page reads it; NaN becomes nothing."""
    data = [[_cell(value) for value in row] for row in rows]
    return json.dumps({"columns": list(columns), "data": data}, ensure_ascii=False)


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value

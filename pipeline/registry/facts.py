"""Tags and description of a registered version, made from the checkpoint in it."""

from collections.abc import Mapping
from typing import Any

from pipeline.checkpoints.provenance import Provenance
from pipeline.tracking.limits import MAX_VERSION_TAG_CHARS, name_for_mlflow
from pipeline.tracking.redaction import redact_values


def described(provenance: Provenance) -> dict[str, str]:
    """Makes tags of what a checkpoint says of itself."""
    tags = {
        "step": str(provenance.step),
        "num_labels": str(len(provenance.labels)),
        "backbone": str(provenance.group("model", "backbone").get("name", "")),
        "text_encoder": str(provenance.group("model", "text").get("encoder", "")),
        "run_name": str(provenance.group("run").get("name", "")),
    }
    return {**provenance.tags, **{key: value for key, value in tags.items() if value}}


def description(provenance: Provenance, metrics: Mapping[str, float]) -> str:
    """Writes a version's description in Markdown, as the UI shows it."""
    tags = described(provenance)
    lines = [
        f"Trained for {provenance.step} steps on {', '.join(provenance.datasets) or 'unknown data'}"
        f" ({tags['num_labels']} labels), code {tags.get('git_commit', 'unknown')}.",
        "",
        f"- backbone: `{tags.get('backbone', 'unknown')}`",
        f"- text encoder: `{tags.get('text_encoder', 'unknown')}`",
    ]
    lines += [f"- {key}: {value:.4g}" for key, value in sorted(metrics.items())]
    return "\n".join(lines)


def tags_for_mlflow(tags: Mapping[str, Any]) -> dict[str, str]:
    """Cuts tags to what MLflow takes, and leaves secrets out."""
    return {
        name_for_mlflow(key): value
        for key, value in redact_values(tags, MAX_VERSION_TAG_CHARS).items()
    }

"""Tags and description of a registered version, made from the checkpoint in it."""

import re
from collections.abc import Mapping
from typing import Any

from pipeline.checkpoints.files import fingerprints
from pipeline.checkpoints.provenance import Provenance
from pipeline.tracking.limits import MAX_VERSION_TAG_CHARS, name_for_mlflow
from pipeline.tracking.redaction import redact_text, redact_values


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


def links(run: Any, model_id: str) -> dict[str, str]:
    """Makes Markdown links to a version's run and to its logged model, by what they lead to."""
    place = f"#/experiments/{run.info.experiment_id}"
    # Without the type the page opens as one about language models, with empty tabs.
    kind = "workflowType=machine_learning"
    name = re.sub(r"[^\w.\- ]", "", run.info.run_name or "") or run.info.run_id
    return {
        "run": f"[{name}]({place}/runs/{run.info.run_id}?{kind})",
        "model": f"[{model_id}]({place}/models/{model_id}?{kind})",
    }


def description(
    provenance: Provenance,
    metrics: Mapping[str, float],
    leads: Mapping[str, str],
    given: Mapping[str, str],
) -> str:
    """Writes a version's description in Markdown, as the UI shows it.

    Args:
        provenance: The checkpoint in it.
        metrics: Metrics that it is registered with.
        leads: Links to where it comes from, of `links`.
        given: The version's tags.
    """
    tags = {**described(provenance), **given}
    lines = [
        f"Trained for {provenance.step} steps on {', '.join(provenance.datasets) or 'unknown data'}"
        f" ({tags['num_labels']} labels).",
        "",
        *(f"- {what}: {link}" for what, link in leads.items()),
        f"- code: commit `{tags.get('git_commit', 'unknown')}`, sources "
        f"`{tags.get('source_fingerprint', 'unknown')}` (`python jobs/registry.py list` compares "
        "them with a checkout)",
        f"- data: {_data(provenance, tags)}",
        f"- checkpoint: `{tags.get('checkpoint', 'unknown')}`",
        f"- backbone: `{tags.get('backbone', 'unknown')}`",
        f"- text encoder: `{tags.get('text_encoder', 'unknown')}`",
    ]
    lines += [f"- {key}: {value:.4g}" for key, value in sorted(metrics.items())]
    return "\n".join(lines)


def _data(provenance: Provenance, tags: Mapping[str, str]) -> str:
    """The fingerprints of the training shards, and where these lay."""
    named = [f"{name} `{value}`" for name, value in fingerprints(tags).items()]
    found = ", ".join(named) or f"`{tags.get('manifests', 'unknown')}`"
    shards = redact_text(str(provenance.group("data").get("shards") or ""))
    return f"{found} of `{shards}`" if shards else found


def tags_for_mlflow(tags: Mapping[str, Any]) -> dict[str, str]:
    """Cuts tags to what MLflow takes, and leaves secrets out."""
    return {
        name_for_mlflow(key): value
        for key, value in redact_values(tags, MAX_VERSION_TAG_CHARS).items()
    }

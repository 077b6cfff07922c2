"""What of a network is published: its settings without places, and its page.

A place (a folder, a file, an address) leads nowhere on another machine, is not followed there, and
says whose machine it was. Of one that a user of the network has to replace, the kind stays, so that
the error at loading can say what to name.

The page says what the network is, on what it was trained, how good it is, and how to use it: what
lies beside the weights (settings, labels, provenance, metrics), and the reports of evaluations.
Nothing is claimed that none of them says.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint import ENCODER, KINDS_OF_PLACES, PRETRAINED, is_name, is_tag
from model.checkpoint_files import TEXT_WEIGHTS
from model.config import (
    NOT_PUBLISHED,
    ONE_HOT,
    STAND_IN,
    BackboneConfig,
    ModelConfig,
    TextConfig,
    reads_pretrained,
)
from model.errors import ModelError
from model.packages import PACKAGE
from model.settings_file import MAX_BYTES, parse_json, shown
from model.text import SENTENCE_PREFIX
from model.text.open_clip_tower import HUB_MODEL

REPOSITORY_NAME = "lseg-ray"
_MOST_LABELS = 300
_MANIFEST, _VERSION = "manifest.", "version."
_PART = r"[\w-][\w.-]{0,95}"
_SENTENCE_MODEL = re.compile(rf"{SENTENCE_PREFIX}({_PART}(?:/{_PART})?)")
_HUB_MODEL = re.compile(rf"{HUB_MODEL}{_PART}/{_PART}(@{_PART})?")


def published_config(config: ModelConfig) -> ModelConfig:
    """Returns the settings without places.

    Args:
        config: the network's; its weights come from the checkpoint's file.
    """
    backbone = replace(
        config.backbone, pretrained=False, weights="", kwargs=_without_places(config.backbone)
    )
    return replace(config, backbone=backbone, text=published_text(config.text))


def published_text(text: TextConfig) -> TextConfig:
    """Returns the text encoder by a name, or by NOT_PUBLISHED after its kind."""
    if not _is_public(text.encoder):
        kind = next((kind for kind in KINDS_OF_PLACES if text.encoder.startswith(kind)), "")
        text = replace(text, encoder=f"{kind}{NOT_PUBLISHED}")
    if text.pretrained in ("", TEXT_WEIGHTS) or is_tag(text.pretrained):
        return text
    # What is not read may as well be the default.
    named = NOT_PUBLISHED if reads_pretrained(text.encoder) else TextConfig().pretrained
    return replace(text, pretrained=named)


def has_own_place(text: TextConfig) -> bool:
    """Whether a published text encoder is one that a user of the network has to name."""
    return NOT_PUBLISHED in text.encoder or text.pretrained == NOT_PUBLISHED


def _is_public(encoder: str) -> bool:
    if encoder in (STAND_IN, ONE_HOT) or encoder.startswith(PACKAGE) or is_name(encoder):
        return True
    if sentence := _SENTENCE_MODEL.fullmatch(encoder):
        return not Path(sentence[1]).is_dir()  # `owner/name` may be a folder as well.
    return bool(_HUB_MODEL.fullmatch(encoder))


def _without_places(backbone: BackboneConfig) -> dict[str, Any]:
    """The arguments of timm without those that say where weights are."""
    return {
        key: _kept(value) for key, value in backbone.kwargs.items() if not _is_place(key, value)
    }


def _kept(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _kept(inner) for key, inner in value.items() if not _is_place(key, inner)}


def _is_place(key: Any, value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_place(key, each) for each in value)
    return isinstance(value, str) and (key == "file" or any(sign in value for sign in "/\\~"))


def model_card(
    config: ModelConfig,
    labels: Sequence[str],
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
    reports: Sequence[Path | str] = (),
    name: str = "OWNER/NAME",
    fingerprint: str = "",
) -> str:
    """Writes the page.

    Args:
        config: the network's settings.
        labels: what it was trained on.
        provenance: the content of provenance.json; may be empty.
        metrics: the content of metrics.json; may be empty.
        reports: files `report.json` of evaluations of this checkpoint.
        name: under which it is published.
        fingerprint: `checkpoint_fingerprint` of the checkpoint; "" where there is none, and so no
            report can be its own.

    Raises:
        ModelError: a report cannot be read, or is that of another checkpoint.
    """
    parts = [
        _front(provenance),
        f"# {_inline(name)}\n\n{_kind(config)}",
        _use(name),
        _data(provenance),
        _labels(labels),
        _figures(metrics, [_report(Path(path), fingerprint) for path in reports]),
        _origin(provenance),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _front(provenance: Mapping[str, Any]) -> str:
    """The header that the Hub reads, as JSON, which is YAML too: no text can leave its line."""
    front = {
        "library_name": REPOSITORY_NAME,
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "open-vocabulary", "lseg"],
    }
    return "---\n" + "\n".join(f"{k}: {json.dumps(v)}" for k, v in front.items()) + "\n---"


def _kind(config: ModelConfig) -> str:
    head = "cost aggregation (CAT-Seg)" if config.head.kind == "cost" else "LSeg's product"
    text = (
        f"An LSeg network (Li et al., ICLR 2022): any list of words becomes a segmentation.\n\n"
        f"- image encoder: `{_inline(config.backbone.name)}`\n"
        f"- text encoder: `{_inline(config.text.encoder)}`, {_text_weights(config.text)}\n"
        f"- head: {head}\n"
        f"- spatial regulariser: {config.regularizer.kind}, depth {config.regularizer.depth}"
    )
    if config.text.encoder in ("stand-in", "one-hot"):
        text += (
            "\n\n**The text encoder is a stand-in without language: this network knows the words "
            "that it was trained on, and is for tests.**"
        )
    return text


def _text_weights(text: TextConfig) -> str:
    """Whether the text encoder is as it was published, and where its weights are."""
    if text.pretrained == TEXT_WEIGHTS:
        return f"its weights are part of these files (`{TEXT_WEIGHTS}`), and not to be replaced"
    if has_own_place(text):
        return (
            "frozen, from a file or folder that is not part of these files: name the same one with "
            f"{ENCODER} or {PRETRAINED} before loading"
        )
    return "frozen, not part of these files"


def _use(name: str) -> str:
    return (
        "## Use\n\n```python\n"
        "from model.lseg import LSeg\n\n"
        f'lseg = LSeg.from_pretrained("{_inline(name)}")\n'
        'masks = lseg.predict([image], ["dog", "wet grass"], other="other")\n'
        "```\n\n"
        f"`python jobs/predict.py photo.jpg --checkpoint hf://{_inline(name)}` does it for folders."
    )


def _data(provenance: Mapping[str, Any]) -> str:
    found = {
        key.removeprefix(_MANIFEST): value
        for key, value in sorted(provenance.items())
        if key.startswith(_MANIFEST)
    }
    if not found:
        return "## Data\n\nThe checkpoint does not say on what it was trained."
    rows = "\n".join(f"| {_cell(key)} | `{_cell(value)}` |" for key, value in found.items())
    return (
        "## Data\n\nTrained on these datasets, whose own licences hold for what is made of them; "
        "the fingerprint is that of the prepared shards.\n\n"
        f"| dataset | fingerprint |\n|---|---|\n{rows}"
    )


def _labels(labels: Sequence[str]) -> str:
    if not labels:
        return "## Labels\n\nThe checkpoint names none."
    shown = ", ".join(_inline(label) for label in labels[:_MOST_LABELS])
    more = f", and {len(labels) - _MOST_LABELS} more" if len(labels) > _MOST_LABELS else ""
    return f"## Labels\n\nTrained on {len(labels)}; any others can be asked.\n\n{shown}{more}"


def _figures(metrics: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]) -> str:
    text = "## Figures\n"
    rows = []
    for report in reports:
        figures = report.get("figures")
        miou = figures.get("miou") if isinstance(figures, dict) else None
        if isinstance(miou, int | float):
            cells = [report.get(key) for key in ("protocol", "split", "other", "zero_shot")]
            cells.append(f"{100 * miou:.1f}")
            rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    if rows:
        text += (
            "\nEvaluations of this checkpoint; `zero-shot` says whether the training saw the "
            "dataset.\n\n| protocol | split | other | zero-shot | mIoU % |\n"
            "|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    validated = [
        (key, value)
        for key, value in sorted(metrics.items())
        if key.startswith("val/") and key.endswith("miou") and isinstance(value, int | float)
    ]
    if validated:
        lines = "\n".join(f"| {_cell(key)} | {100 * value:.1f} |" for key, value in validated)
        text += (
            f"\nValidation during training, at step {_cell(metrics.get('step'))}: on parts of the "
            "datasets that it was trained on, so **not** zero-shot, and often on few images.\n\n"
            f"| metric | % |\n|---|---|\n{lines}\n"
        )
    return text if rows or validated else text + "\nNone were given."


def _origin(provenance: Mapping[str, Any]) -> str:
    commit = provenance.get("git_commit")
    versions = ", ".join(
        f"{key.removeprefix(_VERSION)} {value}"
        for key, value in sorted(provenance.items())
        if key.startswith(_VERSION)
    )
    lines = [f"Code: {REPOSITORY_NAME}, commit `{_cell(commit)}`." if commit else ""]
    lines.append(f"Versions: {_inline(versions)}." if versions else "")
    return "## Made by\n\n" + ("\n".join(filter(None, lines)) or "The checkpoint does not say.")


def _report(path: Path, fingerprint: str) -> dict[str, Any]:
    """Reads the report of an evaluation of the checkpoint with this fingerprint."""
    try:
        with path.open("rb") as file:
            content = parse_json(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise ModelError(f"reports: {path}: {error.strerror}: name a report.json") from None
    if not isinstance(content, dict) or "protocol" not in content:
        raise ModelError(f"reports: {path}: is no report of an evaluation: name a report.json")
    said = content.get("checkpoint_fingerprint")
    if not fingerprint or said != fingerprint:
        evaluated = (
            f"of checkpoint {shown(said)}" if said else "of a checkpoint that it does not name"
        )
        own = f"this one is {fingerprint}" if fingerprint else "this network comes from no folder"
        raise ModelError(
            f"reports: {path}: is the evaluation {evaluated}, and {own}: evaluate the folder that "
            "the network is loaded from, or leave the report out"
        )
    return content


def _inline(text: object) -> str:
    """Text of a file in a line of the page, without what would format it or end it."""
    return " ".join(str(text).replace("`", "'").replace("<", "(").replace(">", ")").split())


def _cell(value: object) -> str:
    return _inline(value).replace("|", "/")

"""A call over HTTP: what a client sends, checked as far as that needs no network, and its answer.

A call is a form (multipart) with the file `image`, or JSON with the same names and the image in
base64. Other names are refused: what would be ignored is a mistake.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import UserError, did_you_mean, printable
from pipeline.serving.config import MAX_LABELS

Kind = Literal["segment", "embed"]

ANSWERS = ("json", "png", "probabilities")
NAMES: dict[str, tuple[str, ...]] = {
    "segment": ("image", "labels", "other", "view", "base_px", "answer", "mask"),
    "embed": ("image", "view", "base_px"),
}
"""What a call of each kind may hold."""


@dataclass(frozen=True)
class Call:
    """One image, and what is asked of it."""

    kind: Kind
    image: bytes
    asked: Mapping[str, Any] = field(default_factory=dict)
    """`labels`, `other`, `view` and `base_px`, as far as they were sent."""
    answer: str = "json"
    with_mask: bool = False
    """Whether an answer in JSON holds the PNG too."""


@dataclass(frozen=True)
class Answer:
    """What goes back: a body, and who made it."""

    media_type: str
    body: bytes
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Busy(Exception):
    """Too many calls wait already: a later one may be answered."""


class Away(Exception):
    """Nothing answers calls: the replica is gone, or none has said anything for a call's time."""


class TooLate(Exception):
    """A call was not answered within its time."""


def call_from_json(kind: Kind, body: bytes) -> Call:
    """Reads a call in JSON.

    Raises:
        UserError: It is none.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError("the request: must be JSON in UTF-8: correct it") from None
    if not isinstance(content, dict):
        raise UserError(
            'the request: must be an object: write {"image": "BASE64", "labels": ["dog"]}'
        )
    _check_names(kind, content)
    data = content.pop("image", None)
    if not isinstance(data, str) or not data:
        raise UserError(
            "image: must be the bytes of an image file in base64: paths and addresses are not read"
        )
    # The addresses that browsers make of a file begin so.
    if data.startswith("data:"):
        data = data.partition(",")[2]
    try:
        image = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("image: is no base64: paths and addresses are not read here") from None
    labels = content.get("labels", [])
    if isinstance(labels, str):
        content["labels"] = split_labels([labels])
    elif not isinstance(labels, list):
        raise UserError("labels: must be a list of texts, or one with commas: correct it")
    if isinstance(content.get("base_px"), bool):
        raise UserError("base_px: must be a whole number: correct it")
    mask = content.pop("mask", False)
    if not isinstance(mask, bool):
        raise UserError(f"mask={_short(mask)}: must be true or false: correct it")
    return _call(kind, image, content, mask)


def call_from_form(kind: Kind, fields: list[tuple[str, str | bytes]]) -> Call:
    """Reads a call from the fields of a form, where `labels` may come several times.

    Raises:
        UserError: It is none.
    """
    content: dict[str, Any] = {}
    labels: list[str] = []
    for name, value in fields:
        if name == "labels" and isinstance(value, str):
            labels += split_labels([value])
            content["labels"] = labels
        elif name in content:
            raise UserError(f"{printable(name[:100])}: comes twice: send it once")
        else:
            content[name] = value
    _check_names(kind, content)
    image = content.pop("image", None)
    if not isinstance(image, bytes):
        raise UserError("image: must be an image file: send it as a file of the form")
    for name, value in content.items():
        if isinstance(value, bytes):
            raise UserError(f"{name}: must be text, not a file: correct it")
    if "base_px" in content:
        content["base_px"] = _whole_number("base_px", content["base_px"])
    mask = content.pop("mask", "false")
    if mask not in ("true", "false"):
        raise UserError(f"mask={_short(mask)}: must be true or false: correct it")
    return _call(kind, image, content, mask == "true")


def split_labels(texts: list[str]) -> list[str]:
    """The labels of texts that separate them by commas."""
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _call(kind: Kind, image: bytes, content: dict[str, Any], mask: bool) -> Call:
    if not image:
        raise UserError("image: is an empty file: send another")
    answer = content.pop("answer", "json")
    if answer not in ANSWERS:
        raise UserError(f"answer={_short(answer)}: must be {', '.join(ANSWERS)}: correct it")
    if mask and answer != "json":
        raise UserError(f"mask: answer={answer} has no place for it: leave it out")
    if len(content.get("labels", ())) > MAX_LABELS:
        raise UserError(f"labels: must be at most {MAX_LABELS}: ask in parts")
    return Call(kind, image, content, answer, mask)


def _check_names(kind: Kind, content: Mapping[str, Any]) -> None:
    for name in content:
        if name not in NAMES[kind]:
            raise UserError(
                f"{printable(name[:100])}: no such parameter: there are {', '.join(NAMES[kind])}"
                f"{did_you_mean(name[:100], NAMES[kind])}"
            )


def _whole_number(name: str, value: str) -> int:
    if not value.isdecimal() or len(value) > 9:
        raise UserError(f"{name}={_short(value)}: must be a whole number: correct it")
    return int(value)


def _short(value: Any) -> str:
    return printable(str(value)[:100])

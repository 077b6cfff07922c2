"""What a served checkpoint takes and gives, in the form of MLflow's file MLmodel.

Plain text, so that a training can say it without MLflow's and pandas' seconds of imports;
`pipeline.inference.served_model` is what keeps it.
"""

import json
from typing import Any

_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_SHARES: dict[str, Any] = {"type": "array", "items": {"type": "double"}}

_INPUTS: list[dict[str, Any]] = [{"type": "binary", "name": "image", "required": True}]
_OUTPUTS: list[dict[str, Any]] = [
    # base64 of a PNG with a palette; values: positions in the labels
    {"type": "string", "name": "mask", "required": True},
    {**_TEXTS, "name": "labels", "required": True},
    # of all pixels, one a label
    {**_SHARES, "name": "shares", "required": True},
    {"type": "double", "name": "no_label_share", "required": True},
    {"type": "long", "name": "no_label_id", "required": True},
    {"type": "long", "name": "height", "required": True},
    {"type": "long", "name": "width", "required": True},
]
_PARAMS: list[dict[str, Any]] = [
    {"name": "labels", "type": "string", "default": [], "shape": [-1]},
    {"name": "other", "type": "string", "default": "none", "shape": None},
    {"name": "view", "type": "string", "default": "single", "shape": None},
    {"name": "base_px", "type": "long", "default": 0, "shape": None},
]

SIGNATURE = {
    "inputs": json.dumps(_INPUTS),
    "outputs": json.dumps(_OUTPUTS),
    "params": json.dumps(_PARAMS),
}
"""The dictionary of an MLflow `ModelSignature`."""
